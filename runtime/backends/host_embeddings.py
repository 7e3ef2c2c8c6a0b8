"""Gathers byte and hash n-gram embeddings on the host, from memory-mapped tables.

The tables are most of a real checkpoint (6.1 of blt-1b's 9.3 GB), yet each byte reads only a few
rows: they stay on the host's disk and page cache, and the encoder's graph takes the sum.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import HashConfig
from fastblt.models.hashing import hash_powers
from fastblt.models.tokens import VOCAB_SIZE
from fastblt.runtime.backends.protocol import ROW_CAPACITY, Ids
from fastblt.runtime.bundle.dtypes import SAFETENSORS_TYPES
from fastblt.runtime.bundle.manifest import BundleError


def map_tables(path: Path) -> dict[str, NDArray[Any]]:
    """Map the tensors of a safetensors file into memory, read-only, by name.

    Raises:
        BundleError: the file cannot be read, is no safetensors file, or holds tensors that are not floating-point.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError(f"found a header of {size} bytes, expected at most the file's size")
            header = json.loads(file.read(size))
        tables = {}
        for name, entry in dict(header).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            kind = SAFETENSORS_TYPES[entry["dtype"]]
            if kind.dtype is None:
                raise ValueError(f"tensor {name}: found type {entry['dtype']}, expected a floating-point type")
            raw = np.memmap(path, np.uint8, "r", offset=8 + size + begin, shape=(end - begin,))
            # Plain arrays over the same pages: indexing a numpy.memmap costs microseconds more.
            tables[name] = np.asarray(raw).view(kind.numpy).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise BundleError(f"{path}: not a readable safetensors file ({error})") from error
    return tables


def _table(path: Path, tables: dict[str, NDArray[Any]], name: str, rows: int) -> NDArray[Any]:
    if name not in tables:
        raise BundleError(f"{path}: tensor {name}: missing, expected {rows} rows")
    table = tables[name]
    if table.ndim != 2 or table.shape[0] != rows:
        raise BundleError(f"{path}: tensor {name}: found shape {list(table.shape)}, expected {rows} rows")
    return table


class HostEmbeddings:
    """Sums one row of the byte table and one row of each hash table.

    Args:
        path: safetensors file with the tables.
        config: sizes and functions of the hash n-grams.

    Raises:
        BundleError: the file cannot be used, or a table is missing or has another number of rows.
    """

    def __init__(self, path: Path, config: HashConfig) -> None:
        tables = map_tables(path)
        self._bytes = _table(path, tables, "encoder.tok_embeddings.weight", VOCAB_SIZE)
        self._hashes = _table(path, tables, "encoder.hash_embeddings.weight", config.tables * config.rows)
        self._context = config.context
        # One column of powers per table, zero before its n-gram: all hashes are one product with the window.
        columns = []
        for powers in hash_powers(config):
            for size in config.sizes:
                columns.append([0] * (self._context - size) + powers[:size])
        self._powers = np.array(columns, dtype=np.int64).reshape(-1, self._context).T
        self._rows = config.rows
        self._window_index = np.arange(ROW_CAPACITY)[:, None] + np.arange(self._context)
        self._offsets = np.arange(len(columns), dtype=np.int64) * config.rows

    def sum_rows(self, ids: Ids, out: NDArray[Any]) -> None:
        """Write the embeddings of n rows.

        Args:
            ids: int64 [context - 1 + n]: the tokens before the rows (0 before the sequence), then the rows.
            out: [n, dim], of any floating-point type; sums are computed in fp32.
        """
        current = ids[self._context - 1 :]
        total = self._bytes[current].astype(np.float32)
        if self._offsets.size:
            windows = ids[self._window_index[: len(current)]]
            with np.errstate(over="ignore"):
                hashes = windows @ self._powers  # int64, wraps
            rows = hashes % self._rows + self._offsets
            total += self._hashes[rows].astype(np.float32).sum(axis=1)
        out[:] = total
