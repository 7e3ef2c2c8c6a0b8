"""Gathers byte and hash n-gram embeddings on the host, from memory-mapped tables.

The tables are most of a real checkpoint (6.1 of blt-1b's 9.3 GB), yet each byte reads only a few
rows: they stay on the host's disk and page cache, and the encoder's graph takes the sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import HashConfig
from fastblt.models.hashing import hash_powers
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.protocol import ROW_CAPACITY, Ids
from fastblt.runtime.bundle.contract import table_shapes
from fastblt.runtime.bundle.tables import map_tables


class HostEmbeddings:
    """Sums one row of the byte table and one row of each hash table.

    Args:
        path: safetensors file with the tables.
        hashing: sizes and functions of the hash n-grams.
        width: of the encoder.

    Raises:
        BundleError: the file cannot be used, or a table is missing or has another shape.
    """

    def __init__(self, path: Path, hashing: HashConfig, width: int) -> None:
        self._bytes, self._hashes = map_tables(path, table_shapes(hashing, width)).values()
        self._context = hashing.context
        # One column of powers per table, zero before its n-gram: all hashes are one product with the window.
        columns = []
        for powers in hash_powers(hashing):
            for size in hashing.sizes:
                columns.append([0] * (self._context - size) + powers[:size])
        self._powers = np.array(columns, dtype=np.int64).reshape(-1, self._context).T
        self._rows = hashing.rows
        self._window_index = np.arange(ROW_CAPACITY)[:, None] + np.arange(self._context)
        self._offsets = np.arange(len(columns), dtype=np.int64) * hashing.rows

    def sum_rows(self, ids: Ids, out: NDArray[Any]) -> None:
        """Write the embeddings of n rows.

        Args:
            ids: int64 [..., context - 1 + n]: the tokens before the rows (0 before the sequence), then the rows.
            out: [..., n, dim], of any floating-point type; sums are computed in fp32.

        Raises:
            GraphError: a token does not exist; nobody but a decoder's graph, in the middle of a draft, makes such ones.
        """
        current = ids[..., self._context - 1 :]
        try:
            # `take` is quicker than an index for the few rows of most calls.
            total = self._bytes.take(current, axis=0).astype(np.float32, copy=False)
        except IndexError as error:
            raise graph_error("decoder", error) from error
        if self._offsets.size:
            windows = ids[..., self._window_index[: current.shape[-1]]]
            hashes = windows @ self._powers  # int64, wraps
            rows = hashes % self._rows + self._offsets
            total += np.add.reduce(self._hashes.take(rows, axis=0).astype(np.float32, copy=False), axis=-2)
        out[...] = total
