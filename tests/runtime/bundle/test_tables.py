"""Tables of embeddings whose header lies are refused; so are values that are no numbers, where somebody looks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fakes.lying_bundles import linked, replace, sign
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.models.limits import SAFETENSORS_HEADER_BYTES
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.contract import BYTE_TABLE, HASH_TABLE, table_shapes
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE, BundleError
from fastblt.runtime.bundle.tables import first_not_finite, map_tables

#: Two tables of 3 and 2 rows: 24 and 16 bytes.
SHAPES = {"a": (3, 2), "b": (2, 2)}
Header = dict[str, Any]


def header(**changes: Header) -> Header:
    entries: Header = {
        "a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [24, 40]},
    }
    for name, entry in changes.items():
        entries[name] = {**entries.get(name, {}), **entry}
    return entries


def written(path: Path, entries: object, data: bytes = bytes(40)) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


#: What is wrong, and whether the format itself forbids it: the library safetensors refuses that, too.
LIES: dict[str, tuple[object, bool]] = {
    "negative": (header(a={"data_offsets": [-24, 0]}), True),
    "backward": (header(a={"data_offsets": [24, 0]}), True),
    "overlap": (header(b={"data_offsets": [16, 32]}), True),
    "the same data": (header(b={"shape": [3, 2], "data_offsets": [0, 24]}), True),
    "gap": (header(b={"shape": [1, 2], "data_offsets": [32, 40]}), True),
    "data left over": (header(b={"shape": [1, 2], "data_offsets": [24, 32]}), True),
    "beyond the end": (header(b={"shape": [4, 2], "data_offsets": [24, 56]}), True),
    "offsets of 2**63": (header(b={"data_offsets": [24, 2**63]}), True),
    "offsets of 400 digits": (header(b={"data_offsets": [24, 10**400]}), True),
    "offsets of fractions": (header(b={"data_offsets": [24.0, 40.0]}), True),
    "one offset": (header(b={"data_offsets": [24]}), True),
    "shape and range differ": (header(a={"shape": [2, 2]}), True),
    "shape of 400 digits": (header(a={"shape": [10**400, 2]}), True),
    "type unknown": (header(a={"dtype": "F33"}), True),
    "type a list": (header(a={"dtype": ["F32"]}), True),
    "integers": (header(a={"dtype": "I32"}), False),
    "no width": (header(a={"shape": [6]}), False),
    "other width": (header(a={"shape": [2, 3]}), False),
    "unknown tensor": (header(c={"dtype": "F32", "shape": [0, 2], "data_offsets": [40, 40]}), False),
    "missing tensor": ({"a": header()["a"]}, True),
    "entry a list": ({**header(), "b": []}, True),
    "header a list": ([header()], True),
    "nothing": ({}, True),
}


@pytest.mark.parametrize("lie", LIES)
def test_header_that_lies_is_one_error(tmp_path: Path, lie: str) -> None:
    entries, forbidden = LIES[lie]
    path = written(tmp_path / "tables", entries)
    with pytest.raises(BundleError) as caught:
        map_tables(path, SHAPES)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500
    if forbidden:
        with pytest.raises((SafetensorError, ValueError)):
            safe_open(path, framework="np")
    else:
        safe_open(path, framework="np")


def test_tables_may_lie_in_any_order_and_have_types_of_their_own(tmp_path: Path) -> None:
    entries = {
        "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [24, 32]},
        "a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
        "__metadata__": {"format": "pt"},
    }
    data = np.arange(6, dtype=np.float32).tobytes() + np.arange(4).astype(ml_dtypes.bfloat16).tobytes()
    found = map_tables(written(tmp_path / "tables", entries, data), SHAPES)
    assert [(name, table.dtype.name, table.tolist()) for name, table in found.items()] == [
        ("a", "float32", [[0, 1], [2, 3], [4, 5]]),
        ("b", "bfloat16", [[0, 1], [2, 3]]),
    ]


def test_header_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    path.write_bytes((SAFETENSORS_HEADER_BYTES + 1).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(2 * SAFETENSORS_HEADER_BYTES)  # sparse
    with pytest.raises(BundleError, match=f"found a header of {SAFETENSORS_HEADER_BYTES + 1} bytes, expected at most"):
        map_tables(path, SHAPES)


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_no_numbers_are_found(kind: Any) -> None:
    largest, smallest = ml_dtypes.finfo(kind).max, ml_dtypes.finfo(kind).smallest_subnormal
    values: NDArray[Any] = np.array([0, -0.0, 1, largest, -largest, smallest, -smallest], dtype=kind)
    assert first_not_finite(values) is None
    assert first_not_finite(values[:0]) is None
    for wrong in (np.inf, -np.inf, np.nan, -np.nan):
        damaged = values.copy()
        damaged[4] = wrong
        assert first_not_finite(damaged) == 4


@pytest.fixture
def with_nan(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Link the tiny bundle, with one NaN in the last row of the hash tables."""
    bundle = linked(tiny_bundle, tmp_path / "bundle")
    replace(bundle / EMBEDDINGS_FILE, (bundle / EMBEDDINGS_FILE).read_bytes()[:-4] + np.float32(np.nan).tobytes())
    sign(bundle, EMBEDDINGS_FILE)
    return bundle


def test_nan_is_found_where_values_are_checked(with_nan: Path) -> None:
    opened = Bundle.open(with_nan)
    message = f"{with_nan / EMBEDDINGS_FILE}: tensor {HASH_TABLE}: found nan in row 193, expected numbers"
    readers: list[Callable[[], object]] = [
        opened.check_values,
        lambda: BltRuntime.from_pretrained(with_nan, max_bytes=50, threads=1, check_values=True),
    ]
    for reader in readers:
        with pytest.raises(BundleError) as caught:
            reader()
        assert str(caught.value) == message
    assert CliRunner().invoke(app, ["inspect", str(with_nan)]).exit_code == 0
    result = CliRunner().invoke(app, ["inspect", str(with_nan), "--check"])
    assert (result.exit_code, result.stderr) == (1, f"error: {message}\n")
    assert result.stdout == ""


def test_inspect_compares_sizes_always_and_digests_when_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = linked(tiny_bundle, tmp_path / "bundle")
    data = bytearray((bundle / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    replace(bundle / "decoder.onnx", bytes(data))
    assert "found sha256" in CliRunner().invoke(app, ["inspect", str(bundle), "--check"]).stderr
    replace(bundle / "decoder.onnx", bytes(data[:-1]))
    result = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"decoder.onnx: found {len(data) - 1} bytes, expected {len(data)}" in result.stderr
    replace(bundle / "decoder.onnx", b"\x08\x0b no graph" + bytes(len(data) - 11))
    result = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {bundle / 'decoder.onnx'}: not a readable graph (")
    assert result.stderr.count("\n") == 1


def test_shapes_are_those_of_the_model(tiny_bundle: Path) -> None:
    config = Bundle.open(tiny_bundle, check=False).config
    assert table_shapes(config.hash, config.encoder.dim) == {BYTE_TABLE: (260, 32), HASH_TABLE: (194, 32)}
