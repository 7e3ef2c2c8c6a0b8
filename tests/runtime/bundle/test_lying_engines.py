"""A manifest of engines that lies, or an engine that is not what the manifests describe, is one error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from fakes.cuda import FakeCuda
from fakes.lying_bundles import Data, Edit, change, linked, replace, retype_graph
from fakes.tensorrt_values import MAGIC

from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.engines import ENGINES_FILE, engine_folders, load_engine_folder
from fastblt.runtime.bundle.manifest import BundleError, sha256_of


@pytest.fixture
def bundle(compiled: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Link a bundle with engines; a test may change its JSON files, and replace the others."""
    return linked(compiled(tiny_checkpoint), tmp_path / "bundle")


@pytest.fixture(autouse=True)
def _nothing_bound(monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("memory is allocated for engines that have to be refused")

    monkeypatch.setattr(DeviceGraph, "__init__", refuse)


def load(bundle: Path) -> object:
    return BltRuntime.from_pretrained(bundle, backend="tensorrt-rtx", max_bytes=200)


def error_of(opener: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        opener(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def edit_engine(**entries: Any) -> Edit:
    return lambda data: data["engines"][0].update(entries)


def edit_shapes(edit: Callable[[Data], object]) -> Edit:
    """Edit the shapes of the first profile of the first engine, the patcher's."""
    return lambda data: edit(data["engines"][0]["profiles"][0]["shapes"])


def global_engine(data: Data) -> Data:
    found: Data = next(engine for engine in data["engines"] if engine["part"] == "global")
    return found


READ: dict[str, Edit] = {
    "index beyond the engines": lambda data: data["capacities"]["256"].update(decoder=99),
    "index negative": lambda data: data["capacities"]["256"].update(decoder=-1),
    "index of another part": lambda data: data["capacities"]["256"].update(decoder=0),
    "index of no part": lambda data: data["capacities"]["256"].update(other=0),
    "capacity no number": lambda data: data["capacities"].update(many={}),
    "capacity 0": lambda data: data["capacities"].update({"0": {}}),
    "capacity of 400 digits": lambda data: data["capacities"].update({"9" * 400: {}}),
    "capacity of other digits": lambda data: data["capacities"].update({"\uff11\uff12": {}}),
    "slots 0": edit_engine(slots=0),
    "slots negative": edit_engine(slots=-64),
    "slots of 400 digits": edit_engine(slots=10**400),
    "fewer slots than may be bound": edit_engine(slots=64),
    "least slots 0": edit_engine(least_slots=0),
    "rows a word": edit_engine(appends="yes"),
    "activations negative": edit_engine(activation_bytes=-1),
    "activations a word": edit_engine(activation_bytes=""),
    "pool negative": edit_engine(pool_slots=-1),
    "size of 400 digits": edit_engine(bytes=10**400),
    "sha256 short": edit_engine(sha256="0"),
    "part unknown": edit_engine(part="other"),
    "file above": edit_engine(file=".."),
    "file outside": edit_engine(file="/etc/passwd"),
    "file with an escape": edit_engine(file="\x1b[2J"),
    "flag a word": edit_engine(decomposed="yes"),
    "seconds a word": edit_engine(build_seconds="long"),
    "aliases a list": edit_engine(aliases=[]),
    "profiles no objects": edit_engine(profiles=[1]),
    "SM 0": lambda data: data.update(sms=[0]),
    "SM a word": lambda data: data.update(sms=["89"]),
    "target empty": lambda data: data.update(target=""),
    "dtype unknown": lambda data: data.update(dtype="fp8"),
    "shapes of other ranks": edit_shapes(lambda shapes: shapes.update(ids=[[1, 1], [1], [1, 2]])),
    "two shapes": edit_shapes(lambda shapes: shapes.update(ids=[[1, 1], [1, 2]])),
    "smallest above largest": edit_shapes(lambda shapes: shapes.update(ids=[[1, 4], [1, 4], [1, 2]])),
    "size 0": edit_shapes(lambda shapes: shapes.update(ids=[[1, 0], [1, 1], [1, 2]])),
    "size of 2**31": edit_shapes(lambda shapes: shapes.update(ids=[[1, 1], [1, 1], [1, 2**31]])),
    "size a fraction": edit_shapes(lambda shapes: shapes.update(ids=[[1, 1.0], [1, 1], [1, 2]])),
}
#: What only a comparison with the bundle shows.
COMPARED: dict[str, Edit] = {
    "fewer slots than the capacity needs": edit_engine(slots=64, least_slots=64),
    "slots that no profile has": lambda data: global_engine(data).update(least_slots=1),
    "rows where caches are updated": edit_engine(appends=True),
    "updates where rows are returned": lambda data: global_engine(data).update(appends=False),
    "alias missing": edit_engine(aliases={}),
    "alias of no tensor": lambda data: data["engines"][0]["aliases"].update(other="key_0"),
    "alias of another cache": lambda data: data["engines"][0]["aliases"].update(key_0_out="value_0"),
    "profile without an input": edit_shapes(lambda shapes: shapes.pop("ids")),
    "profile of no input": edit_shapes(lambda shapes: shapes.update(other=[[1, 1], [1, 1], [1, 2]])),
    "profile of another rank": edit_shapes(lambda shapes: shapes.update(ids=[[1], [1], [2]])),
    "profile of two texts": edit_shapes(lambda shapes: shapes.update(ids=[[2, 1], [2, 1], [2, 2]])),
    "engine of a part missing": lambda data: data["capacities"]["256"].pop("decoder"),
}


@pytest.mark.parametrize("lie", READ)
def test_manifest_of_engines_that_lies_is_one_error(bundle: Path, lie: str) -> None:
    (folder,) = engine_folders(bundle)
    change(folder / ENGINES_FILE, READ[lie])
    assert error_of(load_engine_folder, folder).startswith(f"{folder / ENGINES_FILE}: entry ")
    assert "engines.json: entry " in error_of(load, bundle)


@pytest.mark.parametrize("lie", COMPARED)
def test_engines_of_another_bundle_are_one_error(bundle: Path, lie: str) -> None:
    (folder,) = engine_folders(bundle)
    change(folder / ENGINES_FILE, COMPARED[lie])
    load_engine_folder(folder)
    assert error_of(load, bundle).startswith(str(folder))


def test_engine_of_drafts_that_cannot_share_the_decoders_caches_is_refused(
    compiled: Callable[..., Path], tiny_mixed_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = linked(compiled(tiny_mixed_checkpoint), tmp_path / "mixed")
    (folder,) = engine_folders(bundle)
    found = {engine.part: engine.slots for engine in load_engine_folder(folder).engines}
    assert found["draft"] == found["decoder"]
    wider = found["draft"] + 64

    def widen(data: Data) -> None:
        engine = next(engine for engine in data["engines"] if engine["part"] == "draft")
        engine.update(slots=wider, least_slots=wider)
        caches = set(engine["aliases"].values())
        for shape in (shape for profile in engine["profiles"] for name in caches for shape in profile["shapes"][name]):
            shape[2] = wider

    change(folder / ENGINES_FILE, widen)
    shared = f"{found['decoder']} to {found['decoder']}: it shares the decoder's"
    assert f"found caches of {wider} to {wider} slots, expected {shared}" in error_of(load, bundle)


@pytest.mark.parametrize("name", [ENGINES_FILE, "decoder"])
@pytest.mark.parametrize("what", ["pipe", "device", "link"])
def test_what_is_no_file_of_the_folder_is_refused(bundle: Path, name: str, what: str) -> None:
    (folder,) = engine_folders(bundle)
    path = folder / name if name == ENGINES_FILE else next(folder.glob("decoder-*.engine"))
    os.rename(path, bundle.parent / "moved")
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if what == "device" else bundle.parent / "moved")
    assert f"{path}: " in error_of(load, bundle)


@pytest.mark.parametrize("lie", ["type", "rank", "size", "direction"])
def test_engine_with_other_tensors_is_refused(bundle: Path, lie: str) -> None:
    """The engine is signed again: only what the library reports of it shows the lie."""
    (folder,) = engine_folders(bundle)
    path = next(folder.glob("decoder-*.engine"))
    first, _, plan = path.read_bytes()[len(MAGIC) :].partition(b"\n")
    model = onnx.load_from_string(plan)
    logits = next(value for value in model.graph.output if value.name == "logits")
    if lie == "type":
        retype_graph(model, "logits", "int64")
    elif lie == "rank":
        del logits.type.tensor_type.shape.dim[0]
    elif lie == "size":
        cache = next(value for value in model.graph.input if value.name == "key_0")
        cache.type.tensor_type.shape.dim[2].dim_value = 32
    else:
        header = json.loads(first)
        header["inputs"] = ["logits"]
        first = json.dumps(header).encode()
    replace(path, MAGIC + first + b"\n" + model.SerializeToString())

    def resign(data: Data) -> None:
        for engine in (engine for engine in data["engines"] if engine["file"] == path.name):
            engine.update(bytes=path.stat().st_size, sha256=sha256_of(path))

    change(folder / ENGINES_FILE, resign)
    message = error_of(load, bundle)
    expected = {
        "type": "tensor logits: found type int64, expected float32",
        "rank": "tensor logits: found shape [-1, 260], expected ['batch', 'rows', 260]",
        "size": "tensor key_0: found shape [-1, 1, 32, 32], expected ['batch', 1, ",
        "direction": "tensor logits: found no output, expected one",
    }
    assert message.startswith(f"{path}: {expected[lie]}")


def test_inputs_for_other_numbers_of_sequences_are_named(bundle: Path) -> None:
    (folder,) = engine_folders(bundle)
    change(folder / ENGINES_FILE, COMPARED["profile of two texts"])
    message = error_of(load, bundle)
    assert "'ids'" in message
    assert message.endswith("found other numbers of sequences each, expected the same")
