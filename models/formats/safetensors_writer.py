"""Writes tables that may be larger than memory to one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Table:
    """Describes a table to write."""

    dtype: str
    """safetensors' name: F32, F16 or BF16."""
    itemsize: int
    shape: list[int]
    chunks: Callable[[], Iterator[np.ndarray]]
    """Yields the table's bytes piece by piece, uint8."""


def write_tables(path: Path, tables: Mapping[str, Table]) -> None:
    """Write a safetensors file without holding a table in memory; the format is the published one.

    Data begins at a multiple of 64 bytes, so that a memory map of it is aligned.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, table in tables.items():
        size = math.prod(table.shape) * table.itemsize
        header[name] = {"dtype": table.dtype, "shape": table.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for table in tables.values():
            for piece in table.chunks():
                file.write(piece.data)
