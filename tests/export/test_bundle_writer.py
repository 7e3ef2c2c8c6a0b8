"""The bundle of an export: its manifest, its graphs against the eager model, and options and checkpoints it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from fakes.bundle_folders import FILES, assert_nothing_is_left
from safetensors.torch import load_file, save_file

from fastblt.export import bundle_writer, graph_file
from fastblt.export.bundle_writer import ExportError, export_bundle
from fastblt.export.graph_runner import plan_calls
from fastblt.export.lowered_graph import LoweredGraph
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import WEIGHTS_FILE, save_checkpoint
from fastblt.models.config import BltConfig, ConfigError
from fastblt.models.formats.errors import CheckpointError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    GRAPH_FILES,
    MANIFEST_FILE,
    BundleError,
    load_manifest,
)


def test_manifest_lists_every_file_with_size_and_digest(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST_FILE).read_text())
    found = {p.name: p for p in tiny_bundle.iterdir()}
    assert set(found) == FILES
    assert set(manifest["files"]) == FILES - {MANIFEST_FILE}
    for name, entry in manifest["files"].items():
        data = found[name].read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    Bundle.open(tiny_bundle)


def test_manifest_tells_the_weight_bytes_that_a_call_reads(tiny_bundle: Path, tiny_model: Blt) -> None:
    manifest = load_manifest(tiny_bundle)
    sizes = {name: 4 * p.numel() for name, p in tiny_model.state_dict().items() if "embeddings" not in name}
    for part, spec in manifest.graphs.items():
        graph = onnx.load(tiny_bundle / spec.file).graph
        held = sum(sizes.get(w.name.removesuffix(".T"), 0) for w in graph.initializer)
        # Beside them a graph holds a few constants: RoPE frequencies, axes, lengths.
        assert held <= spec.weight_bytes < held + 2000, part
    assert sum(spec.weight_bytes for spec in manifest.graphs.values()) >= sum(sizes.values())


def test_returned_manifest_is_the_one_in_the_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    target = tmp_path / "deep" / "er" / "bundle"
    returned = export_bundle(tiny_checkpoint, target, on_progress=lambda *step: told.append(step))
    assert returned == json.loads((tmp_path / "deep" / "er" / "bundle" / MANIFEST_FILE).read_text())
    files = [*GRAPH_FILES.values(), EMBEDDINGS_FILE]
    assert [text for _, _, text in told[:5]] == [f"writing {name}" for name in files]
    assert {text for _, _, text in told[5:-1]} == {f"comparing with PyTorch: {name}" for name in files[:4]}
    done, totals, _ = zip(*told, strict=True)
    assert list(done) == sorted(done)
    # Each graph is named before its first call.
    assert set(totals) == {done[-1]} == {len(told) - 1 - 4}


def test_bundle_is_readable_by_others_when_exported(tiny_bundle: Path) -> None:
    assert tiny_bundle.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("hash_tables", ["host", "graph"])
@pytest.mark.parametrize(("dtype", "largest"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 1e-5)])
def test_every_graph_agrees_with_the_eager_model_when_exported(
    either_model: Blt, tmp_path: Path, dtype: str, largest: float, hash_tables: str
) -> None:
    save_checkpoint(tmp_path / "checkpoint", either_model)
    manifest = export_bundle(tmp_path / "checkpoint", tmp_path / "b", dtype=dtype, hash_tables=hash_tables)
    config = either_model.config
    assert (manifest["dtype"], manifest["hash_tables"], manifest["opset"]) == (dtype, hash_tables, 24)
    outputs = {
        "entropy.onnx": {"entropy"},
        "encoder.onnx": {"patch_embeddings"} | ({"states"} if config.decoder_input == "encoder" else set()),
        "global.onnx": {"latents", "latent_kv"},
        "decoder.onnx": {"logits", "probability", "entropy", "best"},
    }
    windows = {"entropy.onnx": config.patcher.window, "decoder.onnx": config.decoder.window}
    for file, names in outputs.items():
        entries = [entry for entry in manifest["verification"] if entry["graph"] == file]
        assert {entry["output"] for entry in entries} == names
        assert len({entry["rows"] for entry in entries}) >= 5
        last = max(entry["position"] + entry["rows"] for entry in entries)
        assert last > 2 * (windows.get(file) or 24)
        errors = [entry["max_error"] for entry in entries]
        assert 0 < max(errors) < (1e-5 if file == "entropy.onnx" else largest)
    assert any(rows.block for rows_of_call in plan_calls(config.decoder.window) for rows in rows_of_call)


def test_weights_lie_beside_the_graph_when_they_are_large(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_file, "EXTERNAL_BYTES", 100_000)
    bundle = tmp_path / "bundle"
    manifest = export_bundle(tiny_checkpoint, bundle)
    external = {name for name in manifest["files"] if name.endswith(".onnx.data")}
    assert external == {"global.onnx.data", "decoder.onnx.data", "entropy.onnx.data"}
    assert max(error["max_error"] for error in manifest["verification"]) < 1e-5
    Bundle.open(bundle)
    for name in GRAPH_FILES.values():
        onnx.checker.check_model(str(bundle / name), full_check=True)
        assert (bundle / name).stat().st_size < 100_000 or name == "encoder.onnx"
    # A bundle may be moved.
    bundle.rename(tmp_path / "moved")
    found, expected = (
        BltRuntime.from_pretrained(b, provider="cpu", max_bytes=99, threads=1).generate(
            b"moved", 40, method="ar", stop_at_eos=False
        )
        for b in (tmp_path / "moved", tiny_bundle)
    )
    assert found.data == expected.data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, r"^dtype: found 'int8', expected one of fp32, fp16, bf16$"),
        ({"dtype": "FP16"}, r"^dtype: found 'FP16'"),
        ({"dtype": ""}, r"^dtype: found ''"),
        ({"hash_tables": "disk"}, r"^hash_tables: found 'disk', expected host or graph$"),
    ],
)
def test_unknown_option_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle", **options)  # type: ignore[arg-type]
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_error_names_the_file_when_weights_are_truncated(tiny_checkpoint: Path, tmp_path: Path, keep: int) -> None:
    checkpoint = tmp_path / "cut"
    shutil.copytree(tiny_checkpoint, checkpoint)
    data = (checkpoint / WEIGHTS_FILE).read_bytes()
    (checkpoint / WEIGHTS_FILE).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=rf"cut/{WEIGHTS_FILE}: not a readable safetensors file"):
        export_bundle(checkpoint, tmp_path / "out" / "bundle")
    assert_nothing_is_left(tmp_path / "out")


def test_error_names_the_folder_or_file_when_the_checkpoint_is_none(
    tiny_checkpoint: Path, tiny_encoder_config: BltConfig, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: found no such folder, expected a checkpoint"):
        export_bundle(tmp_path / "nowhere", tmp_path / "out" / "bundle")
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    tiny_encoder_config.save(checkpoint / CONFIG_FILE)
    with pytest.raises(CheckpointError, match=r"tensors do not fit the configuration: .*global_transformer"):
        export_bundle(checkpoint, tmp_path / "out" / "bundle")
    (checkpoint / CONFIG_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"checkpoint/config\.json: "):
        export_bundle(checkpoint, tmp_path / "out" / "bundle")
    (checkpoint / WEIGHTS_FILE).unlink()
    shutil.copy(tiny_checkpoint / CONFIG_FILE, checkpoint)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS_FILE}: no such file"):
        export_bundle(checkpoint, tmp_path / "out" / "bundle")
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize(("stored", "dtype"), [(torch.float16, "fp32"), (torch.bfloat16, "fp16")])
def test_stored_type_of_the_checkpoint_does_not_matter(
    tiny_model: Blt, tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    save_checkpoint(tmp_path / "checkpoint", tiny_model, stored)
    manifest = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", dtype=dtype)
    assert max(e["max_error"] for e in manifest["verification"]) < (1e-5 if dtype == "fp32" else 5e-3)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [("fp32", float("nan"), "NaN or infinite"), ("fp16", 1e6, "values beyond the range of float16")],
)
def test_tables_with_values_that_are_no_numbers_are_not_written(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str, value: float, shown: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    weights = load_file(tmp_path / "checkpoint" / WEIGHTS_FILE)
    weights["encoder.hash_embeddings.weight"][150, 7] = value
    save_file(weights, tmp_path / "checkpoint" / WEIGHTS_FILE)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=rf"hash_embeddings\.weight: found {shown}"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "out" / "bundle", dtype=dtype, verify=False)
    assert_nothing_is_left(tmp_path / "out")


def test_bundle_whose_graphs_are_not_what_its_manifest_promises_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundle_writer.GRAPH_KINDS, "standard", LoweredGraph)
    with pytest.raises(BundleError, match=r"graph patcher: output 1: found key_0_rows .*, expected key_0_out "):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", verify=False)
    assert_nothing_is_left(tmp_path)
