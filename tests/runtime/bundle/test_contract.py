"""A bundle whose graphs, manifest or files are not what its configuration requires is one error, before any memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.earlier_bundles import of_one_sequence
from fakes.lying_bundles import Data, Edit, change, linked, retype_graph_file, sign, tensor
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.commands.graphs import graph_tables
from fastblt.commands.inspect_facts import bundle_facts
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.eager.bundle_weights import load_eager_model
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.cuda import DeviceMemory
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.archive import pack
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.contract import interfaces
from fastblt.runtime.bundle.manifest import CONFIG_FILE, EMBEDDINGS_FILE, MANIFEST_FILE, BundleError

#: Tensors that are declared with another type: part, names, type.
CONFUSED = [
    ("patcher", ["entropy"], "int64"),
    ("patcher", ["entropy"], "float16"),
    ("patcher", ["ids"], "float32"),
    ("patcher", ["key_0", "key_0_out"], "float16"),
    ("encoder", ["embedded"], "int64"),
    ("encoder", ["embedded"], "float16"),
    ("encoder", ["pool", "pool_out"], "int64"),
    ("encoder", ["pool", "pool_out"], "float16"),
    ("encoder", ["patch_start"], "float32"),
    ("encoder", ["patch_embeddings"], "int64"),
    ("global", ["latent_kv"], "int64"),
    ("global", ["value_1", "value_1_out"], "float16"),
    ("global", ["latents"], "int64"),
    ("decoder", ["entropy"], "int64"),
    ("decoder", ["logits"], "int64"),
    ("decoder", ["logits"], "float16"),
    ("decoder", ["probability"], "int64"),
    ("decoder", ["best"], "float32"),
    ("decoder", ["latent_kv"], "int64"),
    ("decoder", ["latent_index"], "float32"),
    ("decoder", ["positions"], "float32"),
    ("decoder", ["key_0", "key_0_out"], "int64"),
]
confused = pytest.mark.parametrize(("part", "names", "kind"), CONFUSED, ids=lambda value: str(value).strip("[]'"))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Link the tiny bundle; a test may change its JSON files, and replace the others."""
    return linked(tiny_bundle, tmp_path / "bundle")


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend allocates anything before it has refused the bundle."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("memory is allocated for a bundle that has to be refused")

    monkeypatch.setattr(Buffer, "__init__", refuse)
    monkeypatch.setattr(DeviceMemory, "__init__", refuse)


def on_cpu(bundle: Path) -> object:
    return BltRuntime.from_pretrained(bundle, provider="cpu", max_bytes=99, threads=1)


def on_gpu(bundle: Path) -> object:
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_api", lambda: cuda)
        return loading.load_onnxruntime(bundle, "cuda", 99, ort=FakeOnnxRuntime(cuda))


def eager(bundle: Path) -> object:
    return load_eager_model(bundle, "cpu")


def inspected(bundle: Path) -> object:
    facts = bundle_facts(bundle, 99)
    assert facts.manifest is not None
    return graph_tables(bundle, facts.manifest)


def packed(bundle: Path) -> object:
    return pack(bundle, bundle.parent / "archive.tar")


def error_of(opener: Callable[[Path], object], bundle: Path) -> str:
    """Return the message of the one error, which names the bundle."""
    with pytest.raises(BundleError) as caught:
        opener(bundle)
    message = str(caught.value)
    assert message.startswith(str(bundle))
    assert "\n" not in message
    assert len(message) < 1000
    return message


def retype_manifest(bundle: Path, part: str, names: list[str], kind: str) -> None:
    change(bundle / MANIFEST_FILE, lambda data: [tensor(data, part, name).update(dtype=kind) for name in names])


@pytest.mark.parametrize("config", ["tiny_config", "tiny_encoder_config"])
def test_what_the_exporter_writes_is_the_contract(
    config: str, request: pytest.FixtureRequest, tiny_bundle: Path, tiny_encoder_bundle: Path
) -> None:
    found = Bundle.open(tiny_bundle if config == "tiny_config" else tiny_encoder_bundle)
    expected = interfaces(request.getfixturevalue(config), "float32", lowered=False, tables_inside=False)
    assert {p: (g.inputs, g.outputs) for p, g in found.manifest.graphs.items()} == expected
    assert found.activations == "float32"


@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_encoder_bundle"])
def test_graphs_of_earlier_versions_take_one_sequence(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # memory is allocated
    now: Path = request.getfixturevalue(name)
    earlier = of_one_sequence(now, tmp_path / "earlier")
    found = Bundle.open(earlier)
    assert not found.manifest.batches
    assert Bundle.open(now).manifest.batches
    expected = interfaces(found.config, "float32", lowered=False, tables_inside=False, batches=False)
    assert {p: (g.inputs, g.outputs) for p, g in found.manifest.graphs.items()} == expected
    texts = [BltRuntime.from_pretrained(each, provider="cpu", max_bytes=99, threads=1) for each in (earlier, now)]
    one, other = (runtime.generate(b"some text", 40, method="s:4", stop_at_eos=False).data for runtime in texts)
    assert one == other
    change(earlier / MANIFEST_FILE, lambda data: tensor(data, "decoder", "logits")["shape"].__setitem__(0, "batch"))
    assert "found ids int64 [1, rows], role ids, expected ids int64 [batch, rows]" in error_of(on_cpu, earlier)


@confused
def test_manifest_that_declares_another_type_is_refused(bundle: Path, part: str, names: list[str], kind: str) -> None:
    retype_manifest(bundle, part, names, kind)
    message = error_of(on_cpu, bundle)
    assert f"manifest.json: graph {part}: " in message
    assert f"found {names[0]} {kind} [" in message


@confused
def test_manifest_and_graph_that_agree_on_another_type_are_refused(
    bundle: Path, part: str, names: list[str], kind: str
) -> None:
    retype_manifest(bundle, part, names, kind)
    name = {"patcher": "entropy.onnx"}.get(part, f"{part}.onnx")
    retype_graph_file(bundle / name, names, kind)
    sign(bundle, name)
    assert f"manifest.json: graph {part}: " in error_of(on_cpu, bundle)


@pytest.mark.parametrize("opener", [on_cpu, on_gpu, eager, inspected])
@pytest.mark.parametrize(("names", "kind"), [(["logits"], "int64"), (["key_1", "key_1_out"], "float16")])
def test_graph_that_declares_another_type_is_refused(
    bundle: Path, names: list[str], kind: str, opener: Callable[[Path], object]
) -> None:
    """Graphs are loaded one after the other: the wrong one is the first."""
    retype_graph_file(bundle / "entropy.onnx", ["entropy"], "int64")
    retype_graph_file(bundle / "decoder.onnx", names, kind)
    sign(bundle, "entropy.onnx", "decoder.onnx")
    assert (
        "entropy.onnx: output 0: found entropy int64 [batch, rows], role entropy, expected entropy float32"
        in error_of(opener, bundle)
    )


def rename(data: Data, part: str, known: str, /, **changes: Any) -> None:
    tensor(data, part, known).update(changes)


def swap(data: Data, part: str, side: str, one: int, other: int) -> None:
    items = data["graphs"][part][side]
    items[one], items[other] = items[other], items[one]


LIES: dict[str, Edit] = {
    # Numbers, and names that a terminal would obey.
    "opset 0": lambda data: data.update(opset=0),
    "opset of 400 digits": lambda data: data.update(opset=10**400),
    "opset true": lambda data: data.update(opset=True),
    "opset text": lambda data: data.update(opset="24"),
    "weights negative": lambda data: data["graphs"]["global"].update(weight_bytes=-1),
    "weights of 400 digits": lambda data: data["graphs"]["global"].update(weight_bytes=10**400),
    "weights a fraction": lambda data: data["graphs"]["global"].update(weight_bytes=1.5),
    "size negative": lambda data: data["files"][CONFIG_FILE].update(bytes=-1),
    "size of 400 digits": lambda data: data["files"][CONFIG_FILE].update(bytes=10**400),
    "sha256 short": lambda data: data["files"][CONFIG_FILE].update(sha256="0"),
    "sha256 no digits": lambda data: data["files"][CONFIG_FILE].update(sha256="g" * 64),
    "sha256 a list": lambda data: data["files"][CONFIG_FILE].update(sha256=["0" * 64]),
    "model empty": lambda data: data.update(model=""),
    "model with an escape": lambda data: data.update(model="a\x1b[31mred"),
    "model of 300 characters": lambda data: data.update(model="m" * 300),
    # What is there.
    "dtype fp16": lambda data: data.update(dtype="fp16"),
    "dtype unknown": lambda data: data.update(dtype="fp8"),
    "operators lowered": lambda data: data.update(operators="lowered"),
    "operators unknown": lambda data: data.update(operators="none"),
    "tables in the graph": lambda data: data.update(hash_tables="graph"),
    "tables unlisted": lambda data: data["files"].pop(EMBEDDINGS_FILE),
    "config unlisted": lambda data: data["files"].pop(CONFIG_FILE),
    "graph missing": lambda data: data["graphs"].pop("patcher"),
    "graph of no part": lambda data: data["graphs"].update(extra=data["graphs"]["decoder"]),
    "graph in another file": lambda data: data["graphs"]["encoder"].update(file="decoder.onnx"),
    "file outside": lambda data: data["files"].update({"../x": data["files"][CONFIG_FILE]}),
    "file above": lambda data: data["files"].update({"..": data["files"][CONFIG_FILE]}),
    "file with an escape": lambda data: data["files"].update({"\x1b[2J": data["files"][CONFIG_FILE]}),
    # Tensors.
    "rows of 2**31": lambda data: rename(data, "decoder", "logits", shape=[1, "rows", 2**31]),
    "size of a tensor of 400 digits": lambda data: rename(data, "decoder", "logits", shape=[1, "rows", 10**400]),
    "size of a tensor 0": lambda data: rename(data, "decoder", "logits", shape=[0, "rows", 260]),
    "size of a tensor negative": lambda data: rename(data, "decoder", "logits", shape=[1, "rows", -260]),
    "size of a tensor true": lambda data: rename(data, "decoder", "logits", shape=[True, "rows", 260]),
    "size of a tensor a fraction": lambda data: rename(data, "decoder", "logits", shape=[1.0, "rows", 260]),
    "vocabulary": lambda data: rename(data, "decoder", "logits", shape=[1, "rows", 261]),
    "rank": lambda data: rename(data, "decoder", "logits", shape=["rows", 260]),
    "rank 99": lambda data: rename(data, "decoder", "logits", shape=[1] * 99),
    "free size fixed": lambda data: rename(data, "decoder", "logits", shape=[1, 4, 260]),
    "fixed size free": lambda data: rename(data, "decoder", "logits", shape=[1, "rows", "vocabulary"]),
    "free size renamed": lambda data: rename(data, "decoder", "latent_kv", shape=["rows", 2, 2, 64]),
    "latents of another width": lambda data: rename(data, "decoder", "latent_kv", shape=["latents", 2, 2, 65]),
    "cache of another width": lambda data: rename(data, "global", "key_1", shape=[1, 1, "slots", 63]),
    "cache of one slot": lambda data: rename(data, "global", "key_1", shape=[1, 1, 1, 64]),
    "pool of another width": lambda data: rename(data, "encoder", "pool", shape=[1, 1, "pool_slots", 95]),
    "role of a cache": lambda data: rename(data, "global", "key_0", role="pool"),
    "role unknown": lambda data: rename(data, "global", "key_0", role="?"),
    "name of a cache": lambda data: rename(data, "global", "key_0", name="key_9"),
    "names repeated": lambda data: rename(data, "global", "key_0", name="key_1"),
    "name with an escape": lambda data: rename(data, "global", "key_0", name="key\x07"),
    "inputs in another order": lambda data: swap(data, "encoder", "inputs", 1, 2),
    "outputs in another order": lambda data: swap(data, "decoder", "outputs", 1, 2),
    "input missing": lambda data: data["graphs"]["encoder"]["inputs"].pop(),
    "output missing": lambda data: data["graphs"]["encoder"]["outputs"].pop(),
    "input unknown": lambda data: data["graphs"]["encoder"]["inputs"].append(tensor(data, "decoder", "ids")),
    "output unknown": lambda data: data["graphs"]["global"]["outputs"].append(tensor(data, "decoder", "logits")),
    "5,000 inputs": lambda data: data["graphs"]["encoder"].update(inputs=[tensor(data, "decoder", "ids")] * 5000),
    # What is only shown.
    "verification of numbers": lambda data: data.update(verification=[1]),
    "verification without an output": lambda data: data["verification"][0].pop("output"),
    "verification without a number": lambda data: data["verification"][0].update(max_error="?"),
    "quantization without a scheme": lambda data: data.update(quantization={"graphs": {}}),
    "quantization of no graph": lambda data: data.update(quantization={"scheme": "w4", "graphs": {"x": {}}}),
    "precision no text": lambda data: data.update(quantization={"scheme": "w4", "graphs": {"global": {"l": 4}}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_manifest_that_lies_is_one_error(bundle: Path, lie: str) -> None:
    change(bundle / MANIFEST_FILE, LIES[lie])
    message = error_of(lambda path: Bundle.open(path, check=False), bundle)
    assert message.startswith(f"{bundle / MANIFEST_FILE}: ")
    assert message.isprintable()


@pytest.mark.parametrize("opener", [on_cpu, on_gpu, eager, inspected, packed])
def test_every_reader_refuses_a_manifest_that_lies(bundle: Path, opener: Callable[[Path], object]) -> None:
    change(bundle / MANIFEST_FILE, LIES["cache of another width"])
    assert "graph global: input 7: found key_1 float32 [1, 1, slots, 63]" in error_of(opener, bundle)
    assert not (bundle.parent / "archive.tar").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "not JSON"),
        ('{"opset": ' + "9" * 5000 + "}", "not JSON"),
        ('{"opset": NaN}', "not JSON"),
        ('{"format": "fastblt-bundle", "version": 1, "files": ' + '{"a":' * 900 + "1" + "}" * 901, "entry"),
    ],
    ids=["brackets", "digits", "NaN", "levels"],
)
def test_manifest_of_hostile_json_is_one_error(bundle: Path, text: str, reason: str) -> None:
    (bundle / MANIFEST_FILE).write_text(text)
    assert f"manifest.json: {reason}" in error_of(Bundle.open, bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"layers": 3}},
        {"encoder": {"window": None, "layers": 2}},
        {"global_transformer": {"dim": 128}},
        {"cross_attn_k": 3},
        {"decoder_input": "encoder", "block_size": 0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_configuration_of_another_model_is_refused_before_any_graph_is_read(
    bundle: Path, tiny_config: BltConfig, changes: Data
) -> None:
    values = {
        field: dataclasses.replace(getattr(tiny_config, field), **value) if isinstance(value, dict) else value
        for field, value in changes.items()
    }
    (bundle / CONFIG_FILE).write_text(dataclasses.replace(tiny_config, **values).to_json())
    assert "(by config.json)" in error_of(lambda path: Bundle.open(path, check=False), bundle)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", [CONFIG_FILE, MANIFEST_FILE])
def test_link_out_of_the_bundle_is_refused(bundle: Path, name: str, check: bool) -> None:
    os.rename(bundle / name, bundle.parent / name)
    (bundle / name).symlink_to(bundle.parent / name)
    message = error_of(lambda path: Bundle.open(path, check=check), bundle)
    assert f"{name}: found a link to {bundle.parent / name}, expected a file of this folder" in message


@pytest.mark.parametrize("name", [CONFIG_FILE, "decoder.onnx", EMBEDDINGS_FILE])
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "link"])
def test_what_is_no_file_of_the_bundle_is_refused(bundle: Path, name: str, what: str) -> None:
    os.rename(bundle / name, bundle.parent / "moved")
    if what == "pipe":
        os.mkfifo(bundle / name)
    elif what == "folder":
        (bundle / name).mkdir()
    else:
        (bundle / name).symlink_to("/dev/zero" if what == "device" else bundle.parent / "moved")
    assert f"{name}: found " in error_of(Bundle.open, bundle)
    assert f"{name}: found " in error_of(inspected, bundle)


def test_links_inside_and_to_the_whole_bundle_are_followed(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    assert Bundle.open(bundle.parent / "link").manifest.model == "tiny"
    snapshot, blobs = bundle.parent / "hub" / "snapshots" / "1", bundle.parent / "hub" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for path in (path for path in bundle.iterdir() if path.is_file()):
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert Bundle.open(snapshot).manifest.model == "tiny"
