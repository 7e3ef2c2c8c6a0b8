from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastblt.export import graph_file
from fastblt.export.bundle_writer import ExportError, export_bundle
from fastblt.export.graph_runner import plan_calls
from fastblt.export.verification import VerificationError
from fastblt.export.weights import CheckpointWeights
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
    load_manifest,
)
from fastblt.runtime.bundle.target import TargetError

FILES = {MANIFEST_FILE, CONFIG_FILE, EMBEDDINGS_FILE, *GRAPH_FILES.values()}
#: A tensor of each file, all of them written in the graph's type (the patcher's in fp32).
TENSORS = {
    "patcher.layers.0.wqkv.weight": "entropy.onnx",
    "patcher.tok_embeddings.weight": "entropy.onnx",
    "encoder.layers.0.feed_forward.w2.weight": "encoder.onnx",
    "encoder.cross_attention.wkv.weight": "encoder.onnx",
    "encoder.patch_projection.weight": "encoder.onnx",
    "global_transformer.layers.1.feed_forward.w13.weight": "global.onnx",
    "decoder.cross_layers.1.wkv.weight": "global.onnx",
    "decoder.patch_projection.weight": "global.onnx",
    "decoder.layers.1.wo.weight": "decoder.onnx",
    "decoder.output.weight": "decoder.onnx",
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def old_bundle(tiny_encoder_bundle: Path, tmp_path: Path) -> Path:
    """A complete bundle of another model; nothing else is in its parent folder."""
    folder = tmp_path / "out" / "bundle"
    shutil.copytree(tiny_encoder_bundle, folder)
    return folder


@pytest.fixture
def edited(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """``edited(name, value)``: the tiny checkpoint with one element of a tensor set."""

    def edit(name: str, value: float) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(tiny_checkpoint, folder)
        tensors = load_file(folder / WEIGHTS_FILE)
        tensors[name].view(-1)[tensors[name].numel() // 2] = value
        save_file(tensors, folder / WEIGHTS_FILE)
        return folder

    return edit


def assert_nothing_is_left(out: Path) -> None:
    """No bundle and no temporary folder or file, hidden or not."""
    assert not out.exists() or list(out.iterdir()) == []


def assert_only(bundle: Path, expected: dict[str, bytes]) -> None:
    """The bundle is what it was, and alone in its folder."""
    assert list(bundle.parent.iterdir()) == [bundle]
    assert contents(bundle) == expected


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
    calls = {(e["graph"], e["position"]) for e in returned["verification"] if e["graph"] != EMBEDDINGS_FILE}
    assert set(totals) == {done[-1]} == {5 + len(calls)}


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
    assert any(call.block for call in plan_calls(config.decoder.window))


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


def wrong_read(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`CheckpointWeights._read`, that changes one tensor: graphs are written from it, the eager model is not."""
    real = CheckpointWeights._read

    def read(self: CheckpointWeights, found: str, *rest: Any) -> torch.Tensor:
        tensor = real(self, found, *rest)
        return change(tensor) if found == name else tensor

    return read


def slightly_off(tensor: torch.Tensor) -> torch.Tensor:
    """Up to 3 % more or less; the same factor everywhere would not show before a norm."""
    return tensor * torch.linspace(0.97, 1.03, tensor.shape[-1])


@pytest.mark.parametrize(("name", "file"), TENSORS.items())
def test_old_bundle_stays_when_a_weight_differs_from_the_eager_model(
    tiny_checkpoint: Path, old_bundle: Path, name: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old_bundle)
    monkeypatch.setattr(CheckpointWeights, "_read", wrong_read(name, slightly_off))
    with pytest.raises(VerificationError, match=rf"^{file}: output \w+, \d+ rows at position \d+: found a relative"):
        export_bundle(tiny_checkpoint, old_bundle, force=True)
    assert_only(old_bundle, before)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["encoder.cross_attention.wkv.weight", "decoder.output.weight"])
def test_nothing_is_written_when_a_16_bit_weight_differs_from_the_eager_model(
    tiny_checkpoint: Path, tmp_path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointWeights, "_read", wrong_read(name, lambda tensor: tensor.flip(0)))
    with pytest.raises(VerificationError, match=TENSORS[name]):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle", dtype=dtype)
    assert_nothing_is_left(tmp_path / "out")


def test_nothing_is_written_when_a_weight_is_not_finite_in_the_graph_only(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = wrong_read("decoder.output.weight", lambda tensor: tensor * torch.nan)
    monkeypatch.setattr(CheckpointWeights, "_read", wrong)
    with pytest.raises(VerificationError, match=r"decoder\.onnx"):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle")
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("table", ["encoder.tok_embeddings.weight", "encoder.hash_embeddings.weight"])
def test_nothing_is_written_when_tables_on_the_host_differ_from_the_eager_model(
    tiny_checkpoint: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CheckpointWeights.chunks

    def chunks(self: CheckpointWeights, name: str, dtype: Any) -> Iterator[np.ndarray]:
        for piece in real(self, name, dtype):
            yield np.roll(piece, 1, axis=0) if name == table else piece

    monkeypatch.setattr(CheckpointWeights, "chunks", chunks)
    with pytest.raises(VerificationError, match=EMBEDDINGS_FILE):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle")
    assert_nothing_is_left(tmp_path / "out")


class FullDisk:
    """A file that takes a few bytes and then finds the disk full."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(data[:100])
        self._file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``fill_disk(name)``: writing any file of this name fails."""

    def fill(name: str) -> None:
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            found = real(file, mode, *args, **kwargs)
            full = set(mode) & set("wax+") and Path(os.fsdecode(os.fspath(file))).name == name
            return FullDisk(found) if full else found

        monkeypatch.setattr("io.open", opened)
        monkeypatch.setattr("builtins.open", opened)

    return fill


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_left_when_the_disk_is_full(
    tiny_checkpoint: Path, old_bundle: Path, name: str, replacing: bool, fill_disk: Callable[[str], None]
) -> None:
    before = contents(old_bundle)
    if not replacing:
        shutil.rmtree(old_bundle)
    fill_disk(name)
    with pytest.raises(OSError, match="No space left on device") as caught:
        export_bundle(tiny_checkpoint, old_bundle, verify=False, force=True)
    assert caught.value.errno == errno.ENOSPC
    if replacing:
        assert_only(old_bundle, before)
    else:
        assert_nothing_is_left(old_bundle.parent)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "beside"])
def test_nothing_is_left_when_the_system_refuses_to_write_more(
    tiny_checkpoint: Path, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if external:
        monkeypatch.setattr(graph_file, "EXTERNAL_BYTES", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The global graph is larger, those before it are not. Python ignores the signal, so that write() fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle", verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_nothing_is_left(tmp_path / "out")


def test_old_bundle_is_back_when_the_new_one_cannot_take_its_place(
    tiny_checkpoint: Path, old_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = contents(old_bundle), os.rename

    def rename(source: Any, target: Any) -> None:
        if Path(target) == old_bundle and "partial" in Path(source).name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr("os.rename", rename)
    monkeypatch.setattr("os.replace", rename)
    with pytest.raises(OSError, match="Input/output error"):
        export_bundle(tiny_checkpoint, old_bundle, verify=False, force=True)
    assert_only(old_bundle, before)


KILLED = """
import os, signal, sys
from pathlib import Path
from fastblt.export import bundle_writer, verification

checkpoint, bundle, dtype, moment = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "checking a twin":
    real_init = verification.GraphRunner.__init__
    def init(self, path, spec):
        if path.name == "encoder.onnx":
            die()
        real_init(self, path, spec)
    verification.GraphRunner.__init__ = init
if moment == "between renames":
    real = os.rename
    def rename(source, target):
        if Path(target) == Path(bundle):
            die()
        real(source, target)
    os.rename = rename
if moment == "half a file":
    def write_tables(path, tables):
        path.write_bytes(b"half")
        die()
    bundle_writer.write_tables = write_tables
bundle_writer.export_bundle(Path(checkpoint), Path(bundle), dtype=dtype, force=True)
"""


@pytest.mark.parametrize(
    ("moment", "dtype"),
    [("half a file", "fp16"), ("checking a twin", "bf16"), ("between renames", "fp32")],
)
def test_old_bundle_or_none_is_found_when_export_is_killed(
    tiny_checkpoint: Path, old_bundle: Path, moment: str, dtype: str
) -> None:
    before = contents(old_bundle)
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(old_bundle), dtype, moment]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    if moment != "between renames":
        assert contents(old_bundle) == before
    elif old_bundle.exists():
        Bundle.open(old_bundle)
    # The next export is not hindered, and removes what the killed one left.
    export_bundle(tiny_checkpoint, old_bundle, verify=False, force=True)
    Bundle.open(old_bundle)
    assert list(old_bundle.parent.iterdir()) == [old_bundle]


def test_temporary_folder_stays_when_its_export_may_still_be_running(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = out / f".bundle.{os.getppid()}.abc.partial"
    other = out / f".bundle2.{2**22 + 1}.abc.partial"
    dead = out / f".bundle.{2**22 + 1}.abc.partial"  # beyond the largest process number of Linux
    for folder in (running, other, dead):
        (folder / "x").mkdir(parents=True)
    export_bundle(tiny_checkpoint, out / "bundle", verify=False)
    assert {p.name for p in out.iterdir()} == {"bundle", running.name, other.name}


def test_bundle_is_replaced_as_a_whole_when_exported_again(tiny_checkpoint: Path, old_bundle: Path) -> None:
    (old_bundle / "stale.onnx.data").write_bytes(b"of the old bundle")
    export_bundle(tiny_checkpoint, old_bundle, hash_tables="graph", verify=False, force=True)
    assert list(old_bundle.parent.iterdir()) == [old_bundle]
    assert {p.name for p in old_bundle.iterdir()} == FILES - {EMBEDDINGS_FILE}
    manifest = load_manifest(old_bundle)
    Bundle.open(old_bundle)
    assert manifest.model == "tiny"


def test_old_bundle_stays_until_the_new_one_is_verified(tiny_checkpoint: Path, old_bundle: Path) -> None:
    before, seen = contents(old_bundle), []

    def watch(done: int, total: int, what: str) -> None:
        assert done == total or contents(old_bundle) == before
        seen.append(what)

    export_bundle(tiny_checkpoint, old_bundle, force=True, on_progress=watch)
    assert "comparing with PyTorch: decoder.onnx" in seen
    assert contents(old_bundle) != before


def test_empty_folder_is_filled(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "out" / "bundle"
    bundle.mkdir(parents=True)
    export_bundle(tiny_checkpoint, bundle, verify=False)
    Bundle.open(bundle)
    assert list(bundle.parent.iterdir()) == [bundle]


def test_earlier_bundle_is_not_replaced_unless_forced(tiny_checkpoint: Path, old_bundle: Path) -> None:
    before = contents(old_bundle)
    with pytest.raises(TargetError, match=f"^{old_bundle}: found a bundle, expected a new name; --force replaces it$"):
        export_bundle(tiny_checkpoint, old_bundle, verify=False)
    assert_only(old_bundle, before)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "checkpoint"])
def test_what_is_no_bundle_is_never_replaced(tiny_checkpoint: Path, tmp_path: Path, kind: str, force: bool) -> None:
    target = tmp_path / "out" / "precious"
    if kind == "file":
        target.parent.mkdir()
        target.write_text("mine")
    elif kind == "folder":
        (target / "sub").mkdir(parents=True)
    else:
        shutil.copytree(tiny_checkpoint, target)
    before = contents(target.parent)
    checkpoint = target if kind == "checkpoint" else tiny_checkpoint
    with pytest.raises(TargetError, match="precious: exists and is not a bundle, expected"):
        export_bundle(checkpoint, target, force=force)
    assert contents(target.parent) == before
    assert list(target.parent.iterdir()) == [target]


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


NAMES = [*TENSORS, "encoder.tok_embeddings.weight", "encoder.hash_embeddings.weight", "decoder.norm.weight"]


@pytest.mark.parametrize(
    ("name", "value", "hash_tables"),
    [(name, torch.nan, "host") for name in NAMES]
    + [
        ("encoder.hash_embeddings.weight", torch.inf, "graph"),
        ("global_transformer.layers.0.wo.weight", -torch.inf, "host"),
    ],
)
def test_error_names_the_tensor_when_a_weight_is_not_finite(
    edited: Callable[..., Path], tmp_path: Path, name: str, value: float, hash_tables: str
) -> None:
    checkpoint = edited(name, value)
    message = rf"{WEIGHTS_FILE}: {name}: found NaN or infinite values, expected finite weights$"
    with pytest.raises(CheckpointError, match=message):
        export_bundle(checkpoint, tmp_path / "out" / "bundle", hash_tables=hash_tables)
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("hash_tables", ["host", "graph"])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("patcher") and "norm" not in name])
def test_error_names_tensor_and_type_when_a_weight_is_beyond_the_range_of_fp16(
    edited: Callable[..., Path], tmp_path: Path, name: str, hash_tables: str
) -> None:
    checkpoint = edited(name, 1e6)
    message = rf"{WEIGHTS_FILE}: {name}: found values beyond the range of float16 \(largest 1e\+06\), expected finite"
    with pytest.raises(CheckpointError, match=message):
        export_bundle(checkpoint, tmp_path / "out" / "bundle", dtype="fp16", hash_tables=hash_tables)
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("name", ["patcher.layers.0.wo.weight", "decoder.norm.weight"])
def test_weights_that_stay_fp32_may_be_beyond_the_range_of_fp16(
    edited: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    export_bundle(edited(name, 1e6), tmp_path / "bundle", dtype="fp16", verify=False)
    found = [
        onnx.numpy_helper.to_array(w)
        for file in GRAPH_FILES.values()
        for w in onnx.load(tmp_path / "bundle" / file).graph.initializer
        if w.name.removesuffix(".T") == name
    ]
    assert [array.max() for array in found] == [1e6]


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
