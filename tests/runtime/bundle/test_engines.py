from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import tensorrt as fake
from fakes.cuda import FakeCuda

from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.export.tensorrt_build import TensorRtGraph
from fastblt.runtime.backends.gpu import kernel_cache
from fastblt.runtime.backends.gpu.cuda import CudaError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.engines import ENGINES_FILE, ShapeProfile, engine_folders, load_engine_folder
from fastblt.runtime.bundle.manifest import BundleError, sha256_of
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, TensorRtLibrary, load_library

CACHE = re.compile(r"(key|value)_\d+$")


@pytest.fixture(scope="module")
def original(compiled: Callable[..., Path], tiny_checkpoint: Path) -> Path:
    return compiled(tiny_checkpoint)


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """Copy a bundle with engines, which the test may change."""
    shutil.copytree(original, tmp_path / "bundle")
    return tmp_path / "bundle"


def load(bundle: Path, max_bytes: int = 200) -> BltRuntime:
    return BltRuntime.from_pretrained(bundle, backend="tensorrt-rtx", max_bytes=max_bytes)


def change(bundle: Path, **entries: Any) -> None:
    file = engine_folders(bundle)[0] / ENGINES_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_one_engine_of_each_graph_serves_every_capacity(bundle: Path, gpu: FakeCuda) -> None:
    folder = load_engine_folder(engine_folders(bundle)[0])
    assert [engine.part for engine in folder.engines] == ["patcher", "encoder", "global", "decoder"]
    slots = {}
    for size in (200, 256, 257, 1000):
        runtime = load(bundle, size)
        slots[size] = runtime.backend.slots[0].graphs["global"].caches.slots  # type: ignore[attr-defined]
    # Multiples of 64 that hold the text, a draft and a call.
    assert slots[200] < slots[256] == slots[257] < slots[1000] == 1152
    assert not folder.engines_for(1001)


def test_short_text_binds_few_slots(bundle: Path, gpu: FakeCuda) -> None:
    runtime = load(bundle, 1000)
    graph = runtime.backend.slots[0].graphs["global"]  # type: ignore[attr-defined]
    short, long = graph.moved_bytes(0, 1), graph.moved_bytes(900, 1)
    assert long - short == graph.caches.lanes * (1024 - 256) * graph.row_bytes


def test_engines_of_earlier_versions_load(bundle: Path, gpu: FakeCuda) -> None:
    """They updated the caches of the global transformer in place, and had an engine of it for each capacity."""
    folder = engine_folders(bundle)[0]
    data = json.loads((folder / ENGINES_FILE).read_text())
    for engine in data["engines"]:
        del engine["least_slots"], engine["appends"], engine["activation_bytes"]
        if engine["part"] == "global":
            rebuild_in_place(bundle, folder / engine["file"], engine)
    (folder / ENGINES_FILE).write_text(json.dumps(data))
    runtime = load(bundle, 500)
    assert runtime.backend.slots[0].graphs["global"].caches.slots == 1152  # type: ignore[attr-defined]
    expected = BltRuntime.from_pretrained(bundle, max_bytes=500)
    assert runtime.generate(b"In the", 40, method="ar").data == expected.generate(b"In the", 40, method="ar").data


def rebuild_in_place(bundle: Path, path: Path, engine: dict[str, Any]) -> None:
    for profile in engine["profiles"]:
        for name, shapes in profile["shapes"].items():
            if CACHE.match(name):
                profile["shapes"][name] = [[*shape[:2], engine["slots"], shape[3]] for shape in shapes]
    library = TensorRtLibrary("tensorrt-rtx", sys.modules["tensorrt_rtx"])
    graph = TensorRtGraph(library, bundle / "global.onnx", {"slots": engine["slots"]})
    path.write_bytes(graph.build([ShapeProfile(each["name"], each["shapes"]) for each in engine["profiles"]], (89,)))
    engine |= {"bytes": path.stat().st_size, "sha256": sha256_of(path), "aliases": graph.aliases()}


def test_missing_engines_are_one_error_with_the_command(bundle: Path, gpu: FakeCuda) -> None:
    shutil.rmtree(bundle / "engines")
    with pytest.raises(BundleError, match=r"found engines: none; .* fastblt compile .* --target tensorrt-rtx --sm 89"):
        load(bundle)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"version": "1.0"}, r"built with version 1\.0, 1\.7\.1\.116 is installed"),
        ({"target": "tensorrt"}, "for tensorrt"),
        ({"sms": [86, 120]}, "for SM 86, 120, the GPU has SM 89"),
        ({"bundle_sha256": "0" * 64}, "compiled from another export of this bundle"),
        ({"capacities": {"100": {}}}, "for at most 100 bytes, asked for 200"),
    ],
)
def test_engines_that_do_not_fit_are_named_with_the_reason(
    bundle: Path, gpu: FakeCuda, entries: dict[str, Any], reason: str
) -> None:
    change(bundle, **entries)
    with pytest.raises(BundleError, match=rf"found engines: tensorrt-rtx-.*: {reason}; expected"):
        load(bundle)


def test_a_folder_that_cannot_be_read_hides_no_other(bundle: Path, gpu: FakeCuda) -> None:
    good = engine_folders(bundle)[0]
    for name in (".good.1.partial", "a-newer-format"):
        shutil.copytree(good, good.parent / name)
        (good.parent / name / ENGINES_FILE).write_text("{}")
    assert good.parent / ".good.1.partial" not in engine_folders(bundle)
    assert BltRuntime.from_pretrained(bundle, backend="tensorrt-rtx", max_bytes=100).device == "cuda"


def test_engines_of_another_gpu_are_refused(bundle: Path, make_gpu: Callable[..., FakeCuda]) -> None:
    make_gpu(sm=90)
    with pytest.raises(BundleError, match="the GPU has SM 90"):
        load(bundle)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "fastblt-engines"}', '{"format": "fastblt-engines", "format_version": 1}']
)
def test_manifest_that_is_none_is_one_error(bundle: Path, gpu: FakeCuda, text: str) -> None:
    (engine_folders(bundle)[0] / ENGINES_FILE).write_text(text)
    with pytest.raises(BundleError, match=r"engines\.json: "):
        load(bundle)


@pytest.mark.parametrize("entry", ["part", "file", "slots", "profiles", "aliases"])
def test_manifest_without_an_entry_of_an_engine_is_one_error(bundle: Path, gpu: FakeCuda, entry: str) -> None:
    file = engine_folders(bundle)[0] / ENGINES_FILE
    data = json.loads(file.read_text())
    del data["engines"][0][entry]
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"engines\.json: "):
        load(bundle)


def test_engine_outside_of_the_folder_is_refused(bundle: Path) -> None:
    file = engine_folders(bundle)[0] / ENGINES_FILE
    data = json.loads(file.read_text())
    data["engines"][0]["file"] = "../decoder.engine"
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="plain one"):
        load_engine_folder(file.parent)


def test_engine_that_is_missing_or_damaged_is_one_error(bundle: Path, gpu: FakeCuda) -> None:
    path = next(engine_folders(bundle)[0].glob("decoder-*.engine"))
    data = path.read_bytes()
    for damaged, message in ((data[:-1], "bytes, expected"), (data[:-1] + b"\0", "sha256"), (None, "missing")):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(BundleError, match=rf"decoder-\d+\.engine: .*{message}"):
            load(bundle)


def test_engine_that_the_library_does_not_take_is_one_error(bundle: Path, gpu: FakeCuda) -> None:
    folder = engine_folders(bundle)[0]
    path = next(folder.glob("decoder-*.engine"))
    path.write_bytes(b"something else")
    data = json.loads((folder / ENGINES_FILE).read_text())
    for engine in data["engines"]:
        if engine["file"] == path.name:
            engine |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / ENGINES_FILE).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"decoder-\d+\.engine: cannot be loaded"):
        load(bundle)


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("profiles", lambda profiles: profiles[:1], "found 5 profiles, expected 1"),
        (
            "profiles",
            lambda profiles: profiles[::-1],
            r"profile batch-16: input \w+: found \[\(1, .*, expected",
        ),
        ("aliases", lambda aliases: dict.fromkeys(aliases, "other"), r"aliases: found \['key_0_out', .* expected"),
    ],
)
def test_engine_that_is_not_what_its_manifest_says_is_refused(
    bundle: Path, gpu: FakeCuda, entry: str, change: Callable[[Any], Any], message: str
) -> None:
    folder = engine_folders(bundle)[0]
    data = json.loads((folder / ENGINES_FILE).read_text())
    for engine in data["engines"]:
        engine[entry] = change(engine[entry])
    (folder / ENGINES_FILE).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message):
        load(bundle)


def test_library_that_is_missing_is_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TensorRtError, match=r"package tensorrt does not load .* pip install 'fastblt\[tensorrt\]'"):
        load_library("tensorrt")
    with pytest.raises(TensorRtError, match="target: found 'tvm', expected one of tensorrt, tensorrt-rtx"):
        load_library("tvm")


@pytest.mark.parametrize(
    ("version", "accepted"), [("10.2.0", False), ("10.3.0", True), ("11.4.1", True), ("12.0", False)]
)
def test_versions_of_tensorrt_are_checked(
    version: str, accepted: bool, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["tensorrt_rtx"]
    monkeypatch.setattr(type(module), "__version__", version)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if accepted:
        assert load_library("tensorrt").version == version
    else:
        with pytest.raises(TensorRtError, match=rf"found version {version}, expected 10\.3 or newer, below 12"):
            load_library("tensorrt")


def test_standard_graphs_are_refused_when_the_library_has_no_layers_for_them(
    original: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fake.INetworkDefinition, "add_kv_cache_update")
    library = TensorRtLibrary("tensorrt-rtx", sys.modules["tensorrt_rtx"])
    with pytest.raises(
        TensorRtError, match=r"found standard graphs, .* expected lowered ones \(fastblt export --lowered\)"
    ):
        compile_bundle(original, library, CompileRequest((89,), (256,)))


def test_provider_is_refused_when_it_is_not_the_gpu(bundle: Path, gpu: FakeCuda) -> None:
    with pytest.raises(ValueError, match="provider: found 'cpu', expected auto or cuda with backend tensorrt-rtx"):
        BltRuntime.from_pretrained(bundle, backend="tensorrt-rtx", provider="cpu", max_bytes=200)


def test_machine_without_a_gpu_is_one_error(bundle: Path, make_gpu: Callable[..., FakeCuda]) -> None:
    make_gpu(devices=0)
    with pytest.raises(CudaError, match="found 0 GPUs"):
        load(bundle)


def test_kernels_are_kept_from_one_start_to_the_next(
    bundle: Path, gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path / "cache")
    load(bundle).generate(b"x", 5, method="ar")
    first = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "tensorrt-rtx").iterdir()}
    assert len(first) == 4
    assert all(name.startswith("1.7.1.116-sm89-") and data for name, data in first.items())
    load(bundle).generate(b"x", 5, method="ar")
    second = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "tensorrt-rtx").iterdir()}
    # The second start begins with the kernels of the first one.
    assert all(second[name].startswith(data) and len(second[name]) > len(data) for name, data in first.items())


@pytest.mark.parametrize("damage", ["content", "folder"])
def test_kernels_that_cannot_be_read_or_written_stop_nothing(
    bundle: Path, gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path / "cache")
    if damage == "folder":
        (tmp_path / "cache").write_text("a file where a folder should be")
    else:
        load(bundle).generate(b"x", 5, method="ar")
        for path in (tmp_path / "cache" / "tensorrt-rtx").iterdir():
            path.write_bytes(b"?")
    assert len(load(bundle).generate(b"x", 5, method="ar").data) == 5


def test_engine_of_more_than_64_mib_loads_whole(bundle: Path, gpu: FakeCuda) -> None:
    folder = engine_folders(bundle)[0]
    path = next(folder.glob("decoder-*.engine"))
    header, rest = path.read_bytes().split(b"\n", 2)[1:]
    path.write_bytes(fake.MAGIC + header + b" " * (65 << 20) + b"\n" + rest)  # blanks that the header may have
    data = json.loads((folder / ENGINES_FILE).read_text())
    for engine in data["engines"]:
        if engine["file"] == path.name:
            engine |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / ENGINES_FILE).write_text(json.dumps(data))
    assert load(bundle).device == "cuda"
