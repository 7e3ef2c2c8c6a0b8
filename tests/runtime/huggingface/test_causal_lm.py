import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import GenerationConfig

from fastblt.models.blt import Blt
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE, encode
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, load_manifest
from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM
from fastblt.runtime.huggingface.generate_settings import DEFAULT_NEW_TOKENS, UnsupportedArgumentError
from fastblt.runtime.methods import MethodError

TEXT = b"my name is"
IDS = [1, 113, 125, 36, 114, 101, 113, 105, 36, 109, 119]
SPECIAL = [1, 42, 21, 12, 43, 23, 1, 4]
METHODS = ("ar", "s:3")


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_encoder_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    """Of BLT-D and of BLT."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def model(bundle: Path) -> ORTBltForCausalLM:
    return ORTBltForCausalLM.from_pretrained(bundle, max_bytes=300)


@pytest.fixture(scope="module")
def tiny_causal_lm(tiny_bundle: Path) -> ORTBltForCausalLM:
    return ORTBltForCausalLM.from_pretrained(tiny_bundle, max_bytes=100)


@pytest.fixture
def scripted_lm(scripted: Callable[..., Any]) -> Callable[..., ORTBltForCausalLM]:
    """``scripted_lm(text)``: a model that says this text, as bytes or as tokens after BOS."""
    return lambda text: ORTBltForCausalLM(scripted(text), Path("nowhere"), "scripted")


class Streamer:
    """Keeps what it is told, as transformers' streamers are told it."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("method", METHODS)
def test_greedy_ids_are_the_bytes_of_the_runtime(model: ORTBltForCausalLM, bundle: Path, method: str) -> None:
    expected = BltRuntime.from_pretrained(bundle, max_bytes=300).generate(TEXT, 40, stop_at_eos=False)
    ids = model.generate(np.array([IDS]), max_new_tokens=40, eos_token_id=-1, method=method)
    assert ids.dtype == np.int64
    assert ids.shape == (1, len(IDS) + 40)
    assert ids[0, : len(IDS)].tolist() == IDS
    assert ids[0, len(IDS) :].tolist() == list(expected.tokens)
    new = ids[0, len(IDS) :]
    assert (new[new >= BYTE_OFFSET] - BYTE_OFFSET).astype(np.uint8).tobytes() == expected.data


@pytest.mark.parametrize("prompt", [IDS, [BOS_ID], SPECIAL, [1, 0, 3, 259, 1, 1, 70]], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_any_ids_after_bos_are_a_prompt(
    model: ORTBltForCausalLM, tiny_model: Blt, tiny_encoder_model: Blt, prompt: list[int], method: str
) -> None:
    eager = tiny_model if model.config.decoder_input == "embedding" else tiny_encoder_model
    expected = list(prompt)
    for _ in range(20):
        expected.append(int(eager(torch.tensor([expected]))[0][0, -1].argmax()))
    found = model.generate(np.array([prompt]), max_new_tokens=20, eos_token_id=-1, method=method)
    assert found[0].tolist() == expected


def test_call_sites_of_transformers_work_unchanged(model: ORTBltForCausalLM) -> None:
    input_ids = torch.tensor([IDS])
    outputs = model.generate(input_ids, max_new_tokens=12, do_sample=False, use_cache=False)
    assert isinstance(outputs, torch.Tensor)
    assert outputs.dtype == torch.int64
    assert outputs.device == input_ids.device
    assert torch.equal(outputs[:, : input_ids.shape[1]], input_ids)
    inputs: dict[str, Any] = {"input_ids": input_ids.to(model.device), "attention_mask": torch.ones_like(input_ids)}
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, pad_token_id=0, num_beams=1), outputs)
    assert torch.equal(model.generate(inputs=input_ids, max_length=len(IDS) + 12, top_k=50), outputs)
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    assert torch.equal(model.generate(input_ids, generation_config=config), outputs)
    assert torch.equal(model.generate(input_ids, config, max_new_tokens=3), outputs[:, : len(IDS) + 3])
    assert model.can_generate()


@pytest.mark.parametrize(
    "prompt",
    [IDS, [IDS], np.array(IDS, dtype=np.int32), np.array([IDS]), torch.tensor(IDS), torch.tensor([IDS]).int()],
    ids=["list", "list of list", "int32 [n]", "array", "tensor [n]", "int32 tensor"],
)
def test_ids_come_back_as_they_are_given(tiny_causal_lm: ORTBltForCausalLM, prompt: Any) -> None:
    found = tiny_causal_lm.generate(prompt, max_new_tokens=5, eos_token_id=-1)
    assert isinstance(found, torch.Tensor if isinstance(prompt, torch.Tensor) else np.ndarray)
    assert tuple(found.shape) == (1, len(IDS) + 5)
    expected = tiny_causal_lm.generate([IDS], max_new_tokens=5, eos_token_id=-1)
    assert found.tolist() == expected.tolist()
    assert str(found.dtype).endswith("int64")


def test_text_comes_back_for_text(scripted_lm: Callable[..., ORTBltForCausalLM]) -> None:
    model = scripted_lm("naïve “text”, and more".encode())
    assert model.generate("naïve", max_new_tokens=5) == "naïve “t"
    assert model.generate("naïve", max_new_tokens=2) == "naïve �"
    assert model.generate("naïve".encode(), max_new_tokens=2) == "naïve ".encode() + b"\xe2"


@pytest.mark.parametrize("method", METHODS)
def test_eos_is_the_last_token_when_it_ends_generation(
    scripted_lm: Callable[..., ORTBltForCausalLM], method: str
) -> None:
    script = [*encode(b"abc", bos=False).tolist(), EOS_ID, *encode(b"defghijklmnopqrst", bos=False).tolist()]
    model = scripted_lm(script)
    prompt = np.array([[BOS_ID, script[0]]])
    found = model.generate(prompt, max_new_tokens=10, method=method)
    assert found.tolist() == [[BOS_ID, *script[:4]]]
    assert model.generate(prompt, max_new_tokens=10, eos_token_id=[2], method=method).tolist() == found.tolist()
    assert model.generate(b"a", max_new_tokens=10, method=method) == b"abc"
    found = model.generate(prompt, max_new_tokens=10, eos_token_id=-1, method=method)
    assert found.tolist() == [[BOS_ID, *script[:11]]]


def test_lengths_are_those_of_transformers(tiny_causal_lm: ORTBltForCausalLM) -> None:
    def count(**options: Any) -> int:
        return int(tiny_causal_lm.generate([IDS], eos_token_id=-1, **options).shape[1])

    assert count() == len(IDS) + DEFAULT_NEW_TOKENS == len(IDS) + 20
    assert count(max_length=15) == 15
    assert count(max_length=15, max_new_tokens=7) == len(IDS) + 7
    assert count(generation_config={"max_new_tokens": 7}, max_length=15) == len(IDS) + 7


def test_sampling_is_that_of_the_runtime(tiny_causal_lm: ORTBltForCausalLM, tiny_bundle: Path) -> None:
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=100)
    for method in METHODS:
        expected = runtime.generate(TEXT, 30, temperature=0.8, top_p=0.9, seed=3, method=method).tokens
        options: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}
        found = tiny_causal_lm.generate([IDS], max_new_tokens=30, seed=3, method=method, **options)
        assert found[0, len(IDS) :].tolist() == list(expected)
        expected = runtime.generate(TEXT, 30, temperature=1.4, top_k=12, min_p=0.3, seed=5, method=method).tokens
        options = {"do_sample": True, "temperature": 1.4, "top_k": 12}
        config = GenerationConfig(min_p=0.3, top_k=99)
        found = tiny_causal_lm.generate([IDS], config, max_new_tokens=30, seed=5, method=method, **options)
        assert found[0, len(IDS) :].tolist() == list(expected)
    greedy = tiny_causal_lm.generate([IDS], max_new_tokens=30)
    assert tiny_causal_lm.generate([IDS], max_new_tokens=30, temperature=0.8, top_p=0.5).tolist() == greedy.tolist()


def test_method_is_the_runtimes_default_unless_given(tiny_bundle: Path, tiny_causal_lm: ORTBltForCausalLM) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": True, "seed": 3}
    by_default = tiny_causal_lm.generate([IDS], **options)
    assert by_default.tolist() == tiny_causal_lm.generate([IDS], method="s:8", **options).tolist()
    assert tiny_causal_lm.method is None
    model = ORTBltForCausalLM.from_pretrained(tiny_bundle, max_bytes=100, method="ar")
    assert model.generate([IDS], **options).tolist() == model.generate([IDS], method="ar", **options).tolist()
    greedy = [m.generate([IDS], max_new_tokens=30).tolist() for m in (model, tiny_causal_lm)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["array", "tensor"])
def test_streamer_gets_prompt_then_every_token(
    scripted_lm: Callable[..., ORTBltForCausalLM], make: Callable[..., Any], method: str
) -> None:
    script = [*encode(b"ab", bos=False).tolist(), BOS_ID, 70, 71, 72, 0, EOS_ID, *[80] * 20]
    streamer = Streamer()
    prompt = make([[BOS_ID, script[0]]])
    found = scripted_lm(script).generate(prompt, streamer=streamer, max_new_tokens=9, method=method)
    first, *rest = streamer.values
    assert first.tolist() == prompt.tolist()
    assert all(type(v) is type(prompt) and v.ndim == 1 for v in rest)
    assert [token for v in rest for token in v.tolist()] == found[0, 2:].tolist() == script[1:8]
    assert len(rest) > 1
    assert streamer.ended == 1


BAD_CALLS: list[tuple[dict[str, Any], type[ValueError], str]] = [
    ({"num_beams": 4}, UnsupportedArgumentError, "num_beams: found 4, but generate"),
    ({"repetition_penalty": 1.2}, UnsupportedArgumentError, "repetition_penalty: found 1.2"),
    ({"do_sample": True, "typical_p": 0.5}, UnsupportedArgumentError, r"typical_p: found 0\.5"),
    ({"do_sample": True, "top_k": -1}, ValueError, "top_k: found -1, expected an integer >= 0"),
    ({"do_sample": True, "min_p": 2.0}, ValueError, r"min_p: found 2\.0, expected a number in"),
    ({"num_return_sequences": 2}, UnsupportedArgumentError, "num_return_sequences: found 2"),
    ({"return_dict_in_generate": True}, UnsupportedArgumentError, "return_dict_in_generate: found True"),
    ({"logits_processor": [print]}, UnsupportedArgumentError, "logits_processor"),
    ({"generation_config": GenerationConfig(num_beams=2)}, UnsupportedArgumentError, "num_beams: found 2"),
    ({"generation_config": 3}, UnsupportedArgumentError, "generation_config: found int"),
    ({"eos_token_id": 14}, UnsupportedArgumentError, "eos_token_id: found 14, expected 2"),
    ({"eos_token_id": [2, 14]}, UnsupportedArgumentError, r"eos_token_id: found \[2, 14\]"),
    ({"inputs": [IDS, IDS]}, UnsupportedArgumentError, "input_ids: found 2 rows, expected 1"),
    ({"input_ids": [IDS]}, UnsupportedArgumentError, "inputs, input_ids: found both or neither"),
    ({"inputs": None}, UnsupportedArgumentError, "inputs, input_ids: found both or neither"),
    ({"attention_mask": [[0, *[1] * 10]]}, UnsupportedArgumentError, r"attention_mask: .* with 1 zeros, expected 11 o"),
    ({"attention_mask": [[1] * 10]}, UnsupportedArgumentError, r"attention_mask: found shape \[1, 10\]"),
    ({"inputs": [IDS[1:]]}, ValueError, r"prompt ids: found first id 113, expected 1 \(BOS\) first"),
    ({"inputs": np.zeros((1, 0), dtype=np.int64)}, ValueError, "prompt ids: found no id, expected 1"),
    ({"inputs": [[1, VOCAB_SIZE]]}, ValueError, r"prompt ids: found 260, expected ids in 0\.\.259"),
    ({"inputs": [[1, -1]]}, ValueError, "prompt ids: found -1"),
    ({"inputs": [[1.0, 70.0]]}, ValueError, r"prompt ids: found float64 \[2\], expected integers"),
    ({"inputs": [[[1, 70]]]}, ValueError, r"prompt ids: found int64 \[1, 1, 2\]"),
    ({"inputs": 1}, UnsupportedArgumentError, r"input_ids: found 1, expected ids \[n\] or \[1, n\]"),
    ({"attention_mask": np.ones((11, 1))}, UnsupportedArgumentError, r"attention_mask: found shape \[11, 1\]"),
    ({"max_new_tokens": 2.7}, ValueError, "max_new_tokens: found 2.7, expected a positive integer"),
    ({"max_length": 15.5}, ValueError, "max_length: found 15.5, expected more than the prompt's 11 ids, an integer"),
    ({"do_sample": "false"}, ValueError, "do_sample: found 'false', expected True or False"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens: found 0, expected a positive"),
    ({"max_length": 11}, ValueError, "max_length: found 11, expected more than the prompt's 11 ids"),
    ({"max_new_tokens": 91}, CapacityError, "found 10 bytes and max_new_bytes=91, expected at most max_bytes=100"),
    ({"do_sample": True, "temperature": 0.0}, ValueError, "temperature: found 0.0, expected a number > 0"),
    ({"do_sample": True, "top_p": 1.5}, ValueError, r"top_p: found 1\.5"),
    ({"method": "q"}, MethodError, "method 'q': unknown"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_CALLS)
def test_bad_argument_of_generate_is_one_clear_error(
    tiny_causal_lm: ORTBltForCausalLM, bad: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_causal_lm.generate(**({"inputs": [IDS]} | bad))


@pytest.mark.parametrize(
    "options",
    [
        {"provider": "cpu"},
        {"provider": "auto"},
        {"provider": "cuda", "providers": ["CPUExecutionProvider"]},
        {"use_io_binding": True, "provider_options": {}, "trust_remote_code": False, "use_cache": True},
        {"dtype": torch.float32},
        {"dtype": "fp32"},
    ],
    ids=str,
)
def test_properties_tell_how_it_runs(tiny_bundle: Path, options: dict[str, Any]) -> None:
    model = ORTBltForCausalLM.from_pretrained(str(tiny_bundle), max_bytes=20, **options)
    assert model.providers == ["CPUExecutionProvider"]
    assert model.provider == "CPUExecutionProvider"
    assert torch.device(model.device) == torch.device("cpu")
    assert getattr(torch, model.dtype) == torch.float32
    assert model.use_io_binding
    assert model.config.name == load_manifest(tiny_bundle).model
    assert model.name_or_path == str(tiny_bundle)


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
    with pytest.raises(ProviderError, match="CUDA provider does not load"):
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


def test_tokens_are_those_of_the_bytes_when_a_stop_string_ends(scripted: Callable[..., Backend]) -> None:
    script: Sequence[int] = [
        *encode(b"ab", bos=False).tolist(),
        BOS_ID,
        0,
        *encode(b"cd.. more text", bos=False).tolist(),
    ]
    runtime = BltRuntime(scripted(list(script)))
    for method in METHODS:
        found = runtime.generate(b"a", 12, method=method, stop=["d."])
        assert (found.data, found.finish, list(found.tokens)) == (b"bc", "stop", list(script[1:5]))
        found = runtime.generate(b"a", 12, method=method, stop=["cd"])
        assert (found.data, list(found.tokens)) == (b"b", list(script[1:4]))
        stream = runtime.stream(b"a", 6, method=method, stop=["zzz"])
        assert b"".join(chunk.data for chunk in stream) == b"bcd."
        assert stream.tokens == list(script[1:7])
