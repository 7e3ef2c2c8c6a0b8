"""What from_pretrained loads, exports and refuses, and what save_pretrained writes."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch

from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, load_manifest
from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM
from fastblt.runtime.huggingface.generate_settings import UnsupportedArgumentError
from fastblt.runtime.methods import MethodError

IDS = [1, 113, 125, 36, 114, 101, 113, 105, 36, 109, 119]
BAD_LOADS: list[tuple[dict[str, Any], type[ValueError], str]] = [
    ({"provider": "DmlExecutionProvider"}, UnsupportedArgumentError, "provider: found DmlExecutionProvider"),
    ({"providers": ["tpu", "cpu"]}, UnsupportedArgumentError, "provider: found tpu, cpu"),
    (
        {"provider": "TensorrtExecutionProvider"},
        ProviderError,
        "found 'tensorrt', but ONNX Runtime's TensorRT provider",
    ),
    ({"providers": []}, UnsupportedArgumentError, "provider: found none, expected CPUExecutionProvider or CUDA"),
    ({"providers": ["cpu", "cuda"]}, UnsupportedArgumentError, "found cpu, cuda, .* only slower ones may follow"),
    ({"providers": [("CPUExecutionProvider", {})]}, UnsupportedArgumentError, "provider: found "),
    ({"provider_options": {"device_id": 1}}, UnsupportedArgumentError, "provider_options: .* bound on device 0"),
    ({"session_options": {"threads": 2}}, UnsupportedArgumentError, "session_options: found dict, expected an onnx"),
    ({"use_io_binding": False}, UnsupportedArgumentError, "use_io_binding: found False, but every tensor is always"),
    ({"trust_remote_code": True}, UnsupportedArgumentError, "trust_remote_code: found True, but fastblt has no such"),
    ({"dtype": "float16"}, UnsupportedArgumentError, "dtype: found float16, but .* is a bundle of float32"),
    ({"dtype": "int8"}, UnsupportedArgumentError, "dtype: found int8, expected one of float32"),
    ({"hash_tables": "graph"}, UnsupportedArgumentError, "hash_tables: found 'graph', an option of export=True"),
    ({"document_masks": False}, UnsupportedArgumentError, "document_masks: found False"),
    ({"export": True}, UnsupportedArgumentError, "export: found True, but .* is a bundle"),
    ({"max_bytes": 0}, ValueError, "max_bytes: found 0"),
    ({"sequences": 0}, ValueError, "sequences: found 0, expected a positive integer"),
    ({"method": "s:0"}, MethodError, "draft length '0'"),
    ({"model_id": "no/such-model"}, BundleError, "no/such-model: not a folder, expected a bundle"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_LOADS)
def test_bad_argument_of_from_pretrained_is_one_clear_error(
    tiny_bundle: Path, bad: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ORTBltForCausalLM.from_pretrained(**({"model_id": tiny_bundle} | bad))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_is_refused_where_it_does_not_load(tiny_bundle: Path) -> None:
    with pytest.raises(
        ProviderError, match=r"^provider: found 'cuda', but (no NVIDIA driver is|.* CUDA provider does not load)"
    ):
        ORTBltForCausalLM.from_pretrained(tiny_bundle, provider="CUDAExecutionProvider")


def test_method_is_refused_when_the_model_cannot_run_it(tiny_encoder_bundle: Path) -> None:
    with pytest.raises(MethodError):
        ORTBltForCausalLM.from_pretrained(tiny_encoder_bundle, method="d:4@0.7")


def test_checkpoint_without_export_is_told_what_to_do(tiny_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="found a checkpoint, expected a bundle; export=True exports it"):
        ORTBltForCausalLM.from_pretrained(tiny_checkpoint)


def test_session_options_are_those_of_every_session(tiny_bundle: Path, tiny_causal_lm: ORTBltForCausalLM) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = ORTBltForCausalLM.from_pretrained(tiny_bundle, session_options=options, max_bytes=100)
    for graph in model._backend.graphs.values():
        found = graph.session.get_session_options()
        assert found.intra_op_num_threads == 2
        assert found.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert model.generate([IDS]).tolist() == tiny_causal_lm.generate([IDS]).tolist()


def test_saved_bundle_is_the_same(tiny_causal_lm: ORTBltForCausalLM, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "saved"
    for _ in range(2):  # the second time over the first
        tiny_causal_lm.save_pretrained(folder)
        Bundle.open(folder)
        saved = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert saved == {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    again = ORTBltForCausalLM.from_pretrained(folder, max_bytes=100)
    assert again.generate([IDS]).tolist() == tiny_causal_lm.generate([IDS]).tolist()
    (tmp_path / "a" / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UnsupportedArgumentError, match="exists and is not a bundle"):
        tiny_causal_lm.save_pretrained(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["file", "saved"]


@pytest.mark.parametrize("name", [MANIFEST_FILE, "config.json"])
def test_nothing_is_saved_when_the_bundle_has_changed(
    tiny_causal_lm: ORTBltForCausalLM, tmp_path: Path, name: str
) -> None:
    tiny_causal_lm.save_pretrained(tmp_path / "bundle")
    model = ORTBltForCausalLM.from_pretrained(tmp_path / "bundle", max_bytes=20)
    path = tmp_path / "bundle" / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"name": "', '"name": "x').replace('"model": "', '"model": "x'), encoding="utf-8")
    with pytest.raises(BundleError, match=name):
        model.save_pretrained(tmp_path / "saved")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_exported_bundle_lives_as_long_as_the_model(
    tiny_checkpoint: Path, tiny_causal_lm: ORTBltForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = ORTBltForCausalLM.from_pretrained(
        tiny_checkpoint, export=True, dtype=torch.float16, hash_tables="graph", document_masks=False, max_bytes=100
    )
    assert (model.dtype, model.name_or_path) == ("float16", str(tiny_checkpoint))
    assert not model.config.document_masks
    assert model.generate([IDS]).shape == tiny_causal_lm.generate([IDS]).shape
    (folder,) = tmp_path.iterdir()
    assert load_manifest(folder / "bundle").hash_tables == "graph"
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_when_the_export_fails(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bad: list[dict[str, Any]] = [{"hash_tables": "nowhere"}, {"patcher": tmp_path / "none"}]
    for options in bad:
        with pytest.raises(ValueError, match=r"nowhere|none"):
            ORTBltForCausalLM.from_pretrained(tiny_checkpoint, export=True, **options)
    with pytest.raises(ValueError, match="no-checkpoint"):
        ORTBltForCausalLM.from_pretrained(tmp_path / "no-checkpoint", export=True)
    assert not list(tmp_path.iterdir())


def run(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_generation_needs_no_torch(tiny_bundle: Path) -> None:
    code = """
import sys
from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM
model = ORTBltForCausalLM.from_pretrained(sys.argv[1], max_bytes=100)
print(model.generate([[1, 70]], max_new_tokens=3).shape, model.device, model.dtype)
sys.exit("torch" in sys.modules)
"""
    done = run(code, tiny_bundle)
    assert (done.returncode, done.stdout) == (0, "(1, 5) cpu float32\n"), done.stderr


def test_example_of_the_documentation_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "optimum.md").read_text(encoding="utf-8")
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    done = run(text.partition("```python\n")[2].partition("```")[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    Bundle.open(tmp_path / "copy")


@pytest.mark.parametrize("package", ["onnx_ir", "torch"])
def test_export_without_its_extra_says_what_to_install(package: str, tiny_checkpoint: Path) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM
try:
    ORTBltForCausalLM.from_pretrained(sys.argv[1], export=True)
except ModuleNotFoundError as error:
    print(error)
"""
    done = run(code, tiny_checkpoint)
    expected = f"export=True needs the package {package}, install it with: pip install 'fastblt[export]'\n"
    assert done.stdout == expected, done.stderr
