"""Maps the embedding tables of a bundle into memory, once header, types, shapes and ranges are what they must be.

The file has the published format of safetensors: the header's size (8 bytes, little-endian), a JSON header with type,
shape and range of every tensor, then the data. Ranges follow one another without a gap or an overlap, up to the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.limits import SAFETENSORS_HEADER_BYTES
from fastblt.models.reading import open_regular
from fastblt.models.shown import shown
from fastblt.runtime.bundle.dtypes import SAFETENSORS_TYPES
from fastblt.runtime.bundle.json_entries import is_integer
from fastblt.runtime.bundle.manifest import BundleError

Shapes = Mapping[str, tuple[int, int]]
#: Elements that are searched at a time for values that are not finite.
_CHUNK = 2**22
#: Unsigned integers of the same size, and the bits of infinity, by numpy's name of a floating-point type.
_INFINITY: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}


def map_tables(path: Path, shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Map the tables of a file into memory, read-only, by name.

    Args:
        path: of the safetensors file.
        shapes: rows and width of each table, see `fastblt.runtime.bundle.contract.table_shapes`.

    Raises:
        BundleError: the file cannot be read, is no safetensors file, or holds other tensors than these; the message
            names the tensor.
    """
    header, start, size = _read_header(path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name in dict.fromkeys([*shapes, *tensors]):
        if name not in tensors or name not in shapes:
            found, expected = ("missing", "a table") if name in shapes else ("found", "none of this name")
            raise BundleError(f"{path}: tensor {shown(name)}: {found}, expected {expected}")
    tables, end = {}, 0
    for name, entry in sorted(tensors.items(), key=lambda item: _range(path, *item)):
        first, last = _range(path, name, entry)
        kind = SAFETENSORS_TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if kind is None or kind.dtype is None:
            raise BundleError(
                f"{path}: tensor {name}: found type {shown(entry['dtype'])}, expected a floating-point type"
            )
        rows, width = shapes[name]
        if entry["shape"] != [rows, width]:
            raise BundleError(f"{path}: tensor {name}: found shape {shown(entry['shape'])}, expected {[rows, width]}")
        if first != end or last - first != math.prod(shapes[name]) * kind.item_bytes:
            raise BundleError(
                f"{path}: tensor {name}: found the range {first} to {last}, "
                f"expected {end} to {end + math.prod(shapes[name]) * kind.item_bytes}"
            )
        tables[name] = (start + first, last - first, kind.numpy)
        end = last
    if start + end != size:
        raise BundleError(f"{path}: found {size} bytes, expected {start + end} by its header")
    return {name: _map(path, *tables[name]).reshape(shapes[name]) for name in shapes}


def _map(path: Path, offset: int, size: int, kind: np.dtype[Any]) -> NDArray[Any]:
    if size == 0:  # a model without hash tables
        return np.empty(0, dtype=kind)
    try:
        raw = np.memmap(path, np.uint8, "r", offset=offset, shape=(size,))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be mapped into memory ({error})") from error
    # Plain arrays over the same pages: indexing a numpy.memmap costs microseconds more.
    return np.asarray(raw).view(kind)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, where the data begins, and the size of the file."""
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            whole = file.seek(0, 2)
            most = min(SAFETENSORS_HEADER_BYTES, whole - 8)
            if size > most:
                raise ValueError(f"found a header of {size} bytes, expected at most {most}")
            file.seek(8)
            header = json.loads(file.read(size))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path}: not a readable safetensors file ({reason})") from error
    if not isinstance(header, dict):
        raise BundleError(f"{path}: not a readable safetensors file (found {shown(header)}, expected an object)")
    return header, 8 + size, whole


def _range(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Return where a tensor's data begins and ends, relative to the end of the header."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise BundleError(f"{path}: tensor {name}: found {shown(entry)}, expected dtype, shape and data_offsets")
    offsets = entry["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(is_integer(each, 0, 2**63) for each in offsets)):
        raise BundleError(f"{path}: tensor {name}: found data_offsets {shown(offsets)}, expected begin and end")
    return offsets[0], offsets[1]


def check_values(path: Path, shapes: Shapes) -> None:
    """Check that every value of the tables is finite; it reads all of them, 1 to 3 GB a second.

    Raises:
        BundleError: as `map_tables`, or a value is NaN or infinite; the message names the tensor and the row.
    """
    for name, table in map_tables(path, shapes).items():
        flat, width = table.reshape(-1), shapes[name][1]
        for first in range(0, flat.size, _CHUNK):
            index = first_not_finite(flat[first : first + _CHUNK])
            if index is not None:
                row = (first + index) // width
                raise BundleError(f"{path}: tensor {name}: found {flat[first + index]} in row {row}, expected numbers")


def first_not_finite(values: NDArray[Any]) -> int | None:
    """Return the index of the first NaN or infinity among floating-point values [n]; None: there is none."""
    unsigned, infinity = _INFINITY[values.dtype.name]
    # Without their signs, the bits of finite numbers are below those of infinity, and those of NaNs above.
    bits = values.view(unsigned) & unsigned(np.iinfo(unsigned).max >> 1)
    if not bits.size or bits.max() < infinity:
        return None
    return int(np.argmax(bits >= infinity))
