from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.config import BltConfig, ConfigError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    FORMAT_VERSION,
    GRAPH_FILES,
    MANIFEST_FILE,
    BundleError,
    load_manifest,
    sha256_of,
)

FILES = [CONFIG_FILE, EMBEDDINGS_FILE, *GRAPH_FILES.values()]
Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Copy the tiny bundle, so that a test may damage it."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    return folder


def rewrite_manifest(bundle: Path, edit: Edit) -> None:
    """Change a manifest; ``edit`` works in place or returns what to write instead."""
    path = bundle / MANIFEST_FILE
    data = json.loads(path.read_text())
    replacement = edit(data)
    path.write_text(json.dumps(data if replacement is None else replacement))


def sign(bundle: Path) -> None:
    """Make the manifest fit the files again, like somebody who knows the format."""

    def update(data: dict[str, Any]) -> None:
        for name, entry in data["files"].items():
            entry.update(bytes=(bundle / name).stat().st_size, sha256=sha256_of(bundle / name))

    rewrite_manifest(bundle, update)


def opens(backend: str) -> Callable[[Path], object]:
    return lambda bundle: BltRuntime.from_pretrained(bundle, provider="cpu", backend=backend, max_bytes=99, threads=1)


@pytest.fixture(params=["files", "onnxruntime", "eager"])
def opener(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Return each function that opens a bundle, in turn."""
    return Bundle.open if request.param == "files" else opens(request.param)


def assert_refused(opener: Callable[[Path], object], bundle: Path, *parts: str) -> None:
    """Check that the error is a `BundleError` of one line that begins with the path and contains these parts."""
    with pytest.raises(BundleError) as caught:
        opener(bundle)
    message = str(caught.value)
    assert message.startswith(str(bundle))
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_manifest_is_the_same_when_read_and_written(tiny_bundle: Path) -> None:
    data = json.loads((tiny_bundle / MANIFEST_FILE).read_text())
    manifest = load_manifest(tiny_bundle)
    assert manifest.to_dict() == data
    assert list(manifest.graphs) == list(GRAPH_FILES)
    decoder = manifest.graphs["decoder"]
    ids = decoder.input("ids")
    assert ids is not None
    assert (ids.dtype, ids.shape, ids.role) == ("int64", ("batch", "rows"), "ids")
    assert decoder.input("nothing") is None


def test_copy_of_a_bundle_is_accepted(bundle: Path, opener: Callable[[Path], object]) -> None:
    opener(bundle)


def test_error_names_the_folder_when_there_is_none(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    assert_refused(opener, tmp_path / "nowhere", "not a folder, expected a bundle")
    (tmp_path / "file").write_text("x")
    assert_refused(opener, tmp_path / "file", "not a folder, expected a bundle")


def test_error_names_the_manifest_when_it_is_missing(bundle: Path, opener: Callable[[Path], object]) -> None:
    (bundle / MANIFEST_FILE).unlink()
    assert_refused(
        opener, bundle, f"/{MANIFEST_FILE}: cannot be read (No such file", "expected a bundle's manifest.json"
    )


@pytest.mark.parametrize("opener", [Bundle.open, opens("onnxruntime")], ids=["files", "onnxruntime"])
def test_checkpoint_is_named_as_such(tiny_checkpoint: Path, opener: Callable[[Path], object]) -> None:
    assert_refused(opener, tiny_checkpoint, "found a checkpoint, expected a bundle (fastblt export makes one of it)")


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": "fastblt-bundle"', b"\xff\xfe\x00", b"\0" * 20])
def test_error_names_the_manifest_when_it_is_no_json(
    bundle: Path, opener: Callable[[Path], object], content: bytes
) -> None:
    (bundle / MANIFEST_FILE).write_bytes(content)
    assert_refused(opener, bundle, f"/{MANIFEST_FILE}: not JSON (")


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda data: [data], "[{"),
        (lambda data: "manifest", "'manifest'"),
        (lambda data: 7, "7"),
        (lambda data: {}, "(None, None)"),
        (lambda data: data.update(format="fastblt-checkpoint"), "('fastblt-checkpoint', 1)"),
        (lambda data: data.update(version=FORMAT_VERSION + 1), f"('fastblt-bundle', {FORMAT_VERSION + 1})"),
        (lambda data: data.update(version=str(FORMAT_VERSION)), f"('fastblt-bundle', '{FORMAT_VERSION}')"),
    ],
    ids=["list", "string", "number", "empty", "format", "version", "type"],
)
def test_error_tells_found_and_expected_format_when_it_is_another(bundle: Path, edit: Edit, found: str) -> None:
    rewrite_manifest(bundle, edit)
    expected = f"expected ('fastblt-bundle', {FORMAT_VERSION})"
    assert_refused(Bundle.open, bundle, f"/{MANIFEST_FILE}: found format {found}", expected)


@pytest.mark.parametrize("key", ["model", "dtype", "opset", "hash_tables", "graphs", "files", "verification"])
def test_error_names_the_entry_when_the_manifest_lacks_it(bundle: Path, key: str) -> None:
    rewrite_manifest(bundle, lambda data: data.pop(key) and None)
    assert_refused(Bundle.open, bundle, f"/{MANIFEST_FILE}: ", key, "expected ")


@pytest.mark.parametrize("part", GRAPH_FILES)
def test_error_names_the_part_when_the_manifest_lacks_its_graph(bundle: Path, part: str) -> None:
    rewrite_manifest(bundle, lambda data: data["graphs"].pop(part) and None)
    assert_refused(opens("onnxruntime"), bundle, f"/{MANIFEST_FILE}: ", part, "expected ")


@pytest.mark.parametrize("key", ["name", "dtype", "shape", "role"])
def test_error_names_the_key_when_a_tensor_lacks_it(bundle: Path, key: str) -> None:
    rewrite_manifest(bundle, lambda data: data["graphs"]["decoder"]["inputs"][0].pop(key) and None)
    assert_refused(Bundle.open, bundle, f"/{MANIFEST_FILE}: ", key)


@pytest.mark.parametrize("key", ["bytes", "sha256"])
def test_error_names_the_manifest_when_a_file_entry_lacks_a_key(bundle: Path, key: str) -> None:
    rewrite_manifest(bundle, lambda data: data["files"][CONFIG_FILE].pop(key) and None)
    assert_refused(Bundle.open, bundle, key)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@examples(60)
@given(data=st.data())
def test_error_is_a_bundle_error_when_any_part_of_the_manifest_is_something_else(
    tiny_bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST_FILE).read_text())
    manifest["verification"] = manifest["verification"][:1]
    where: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or not where[key] or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = data.draw(JSON)
    folder = tmp_path / "bundle"
    if not folder.exists():
        shutil.copytree(tiny_bundle, folder)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    refusal = None
    try:
        found = Bundle.open(folder).manifest
    except BundleError as error:
        refusal = str(error)
    assert refusal.startswith(str(folder)) if refusal is not None else set(found.files) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_error_names_the_file_when_it_is_missing(bundle: Path, opener: Callable[[Path], object], name: str) -> None:
    size = (bundle / name).stat().st_size
    (bundle / name).unlink()
    assert_refused(opener, bundle, f"/{name}: missing, expected {size} bytes")


@pytest.mark.parametrize("name", FILES)
def test_error_tells_both_sizes_when_a_file_is_truncated(
    bundle: Path, opener: Callable[[Path], object], name: str
) -> None:
    data = (bundle / name).read_bytes()
    for kept in (data[:-1], b"", data + b"\0"):
        (bundle / name).write_bytes(kept)
        assert_refused(opener, bundle, f"/{name}: found {len(kept)} bytes, expected {len(data)}")


@pytest.mark.parametrize("name", FILES)
def test_error_tells_both_digests_when_one_bit_of_a_file_differs(
    bundle: Path, opener: Callable[[Path], object], name: str
) -> None:
    expected = sha256_of(bundle / name)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    found = sha256_of(bundle / name)
    assert found != expected
    assert_refused(opener, bundle, f"/{name}: found sha256 {found}, expected {expected}")


@pytest.mark.parametrize("name", ["extra.bin", "decoder.onnx.data", ".hidden", "manifest.json.bak"])
def test_error_names_the_file_when_the_manifest_does_not_list_it(
    bundle: Path, opener: Callable[[Path], object], name: str
) -> None:
    (bundle / name).write_bytes(b"x")
    assert_refused(opener, bundle, f"/{name}: found a file that {MANIFEST_FILE} does not list")


def test_files_are_not_read_when_only_the_manifest_is_wanted(bundle: Path) -> None:
    for name in FILES:
        (bundle / name).unlink()
    assert load_manifest(bundle).model == "tiny"


def test_graphs_are_not_read_when_files_are_not_checked(bundle: Path, tiny_config: BltConfig) -> None:
    for name in FILES:
        if name != CONFIG_FILE:
            (bundle / name).write_bytes(b"damaged")
    opened = Bundle.open(str(bundle), check=False)
    assert opened.config == tiny_config
    assert {part: opened.graph(part) for part in GRAPH_FILES} == {p: bundle / f for p, f in GRAPH_FILES.items()}
    assert opened.embeddings == bundle / EMBEDDINGS_FILE
    with pytest.raises(BundleError, match=r"found 7 bytes, expected"):
        opened.check_files()


def test_no_embeddings_are_named_when_the_tables_are_in_the_graph(
    bundle: Path, tiny_checkpoint: Path, exported: Callable[..., Path]
) -> None:
    opened = Bundle.open(exported(tiny_checkpoint, hash_tables="graph"))
    assert (opened.embeddings, opened.tables()) == (None, {})
    rewrite_manifest(bundle, lambda data: data.update(hash_tables="graph"))
    assert_refused(Bundle.open, bundle, "graph encoder: input 0: found embedded", "expected ids")


def test_error_names_both_when_manifest_and_config_have_other_graphs(
    bundle: Path, opener: Callable[[Path], object]
) -> None:
    rewrite_manifest(bundle, lambda data: data["graphs"].pop("patcher") and None)
    found, expected = "found graphs decoder, encoder, global", "expected decoder, encoder, global, patcher"
    assert_refused(opener, bundle, f"{MANIFEST_FILE}: {found}, {expected} ({CONFIG_FILE})")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"name": "x"}', b"\xff"])
def test_error_names_config_when_it_is_wrong_but_listed(
    bundle: Path, content: bytes, opener: Callable[[Path], object]
) -> None:
    (bundle / CONFIG_FILE).write_bytes(content)
    sign(bundle)
    with pytest.raises(ConfigError, match=re.escape(str(bundle / CONFIG_FILE))):
        opener(bundle)


def changed(config: BltConfig, **changes: Any) -> BltConfig:
    """Return a valid configuration that the bundle's graphs do not have."""
    values: dict[str, Any] = {}
    for key, value in changes.items():
        old = getattr(config, key)
        values[key] = dataclasses.replace(old, **value) if isinstance(value, dict) else value
    return dataclasses.replace(config, **values)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"layers": 3}},
        {"global_transformer": {"dim": 128}},
        {"encoder": {"dim": 64}, "decoder": {"dim": 64}},
        {"cross_attn_k": 3},
        {"hash": {"rows": 101}},
        {"hash": {"sizes": (3, 4, 5)}},
        {"decoder_input": "encoder", "block_size": 0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_bundle_is_refused_when_its_config_is_of_another_model(
    bundle: Path, tiny_config: BltConfig, changes: dict[str, Any]
) -> None:
    changed(tiny_config, **copy.deepcopy(changes)).save(bundle / CONFIG_FILE)
    sign(bundle)
    with pytest.raises((BundleError, ConfigError), match=re.escape(str(bundle))):
        opens("onnxruntime")(bundle)


@pytest.mark.parametrize("name", GRAPH_FILES.values())
def test_error_names_the_graph_when_it_is_damaged_but_listed(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"\x08\x0b not a graph")
    sign(bundle)
    with pytest.raises(BundleError, match=re.escape(f"{bundle / name}: ONNX Runtime cannot load it")):
        opens("onnxruntime")(bundle)


@pytest.mark.parametrize("key", ["name", "dtype"])
@pytest.mark.parametrize(("part", "side"), [("decoder", "inputs"), ("global", "outputs")])
def test_error_names_the_graph_when_the_manifest_describes_another(
    bundle: Path, part: str, side: str, key: str
) -> None:
    rewrite_manifest(bundle, lambda data: data["graphs"][part][side][0].update({key: "float64"}))
    with pytest.raises(BundleError, match=re.escape(str(bundle))):
        opens("onnxruntime")(bundle)


def test_bundle_without_tables_is_refused_when_they_belong_on_the_host(bundle: Path) -> None:
    (bundle / EMBEDDINGS_FILE).unlink()
    rewrite_manifest(bundle, lambda data: data["files"].pop(EMBEDDINGS_FILE) and None)
    assert_refused(opens("onnxruntime"), bundle, EMBEDDINGS_FILE)
