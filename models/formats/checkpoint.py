"""Presents a checkpoint of any layout as this project's tensors.

Other layouts store separately what this project multiplies at once (queries, keys and values; gate and up; keys and
values of a cross-attention; hash tables). Each of our tensors is therefore one stored tensor, or several of equal
shape, joined along the first axis. That table, `Checkpoint.pieces`, is all that a layout has to provide; it is read in
both directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.formats.errors import CheckpointError, listing
from fastblt.models.formats.layout import Layout
from fastblt.models.formats.names import PATCHER_PREFIX, Pieces
from fastblt.models.formats.stores import DTYPES, TensorStore
from fastblt.models.machine_memory import check_memory

HASH_TABLE = "encoder.hash_embeddings.weight"
_CHUNK_ROWS = 65_536
_CHUNK_ELEMENTS = 1 << 26


def expected_shapes(config: BltConfig) -> Mapping[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a model with this configuration."""
    return MappingProxyType(_shapes(config))


@lru_cache(maxsize=4)
def _shapes(config: BltConfig) -> dict[str, tuple[int, ...]]:
    # It is asked several times for one checkpoint, and takes two seconds for the tallest stacks.
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Blt(config).state_dict().items()}


@dataclass(frozen=True)
class Checkpoint:
    """Holds configuration and weights; `fastblt.models.formats.open.open_checkpoint` returns a checked one."""

    layout: Layout
    path: Path
    config: BltConfig
    store: TensorStore
    pieces: Pieces

    def check(self) -> None:
        """Account for every tensor without reading any.

        Raises:
            CheckpointError: tensors are missing, unknown, misshapen, or of a type that weights cannot have.
        """
        shapes = expected_shapes(self.config)
        wanted = {
            piece: (shapes[name][0] // len(pieces), *shapes[name][1:])
            for name, pieces in self.pieces.items()
            for piece in pieces
        }
        found = self.store.tensors
        patcher = [p for name, pieces in self.pieces.items() if name.startswith(PATCHER_PREFIX) for p in pieces]
        if patcher and found and not any(piece in found for piece in patcher):
            raise CheckpointError(
                f"{self.path}: found no entropy model (no {patcher[0]}), expected one, because the configuration "
                "closes patches by entropy: pass the folder of an entropy model with --patcher PATH"
            )
        problems = [f"missing {n} {list(shape)}" for n, shape in wanted.items() if n not in found]
        problems += [f"unknown {n} {list(t.shape)}" for n, t in found.items() if n not in wanted]
        problems += [
            f"{n}: found shape {list(found[n].shape)}, expected {list(shape)}"
            for n, shape in wanted.items()
            if n in found and found[n].shape != shape
        ]
        problems += [
            f"{n}: found type {t.dtype}, expected one of {', '.join(DTYPES)}"
            for n, t in found.items()
            if n in wanted and t.dtype not in DTYPES
        ]
        if problems:
            raise CheckpointError(f"{self.path}: tensors do not fit the configuration: {listing(problems)}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one of our tensors."""
        parts = [self.store.tensors[piece].shape for piece in self.pieces[name]]
        return (sum(part[0] for part in parts), *parts[0][1:])

    def dtype(self, name: str) -> str:
        """Return the stored type of one of our tensors, safetensors' name; F32 if its pieces differ."""
        kinds = {self.store.tensors[piece].dtype for piece in self.pieces[name]}
        return kinds.pop() if len(kinds) == 1 else "F32"

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Read and convert one of our tensors.

        Raises:
            CheckpointError: it has values that are not finite, or that the type cannot hold, or memory cannot hold it.
        """
        check_memory(self.allocated_bytes(name, dtype), self.path, f"{name} in {dtype}", CheckpointError)
        parts = [self._converted(piece, self.store.read(piece), dtype) for piece in self.pieces[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def allocated_bytes(self, name: str, dtype: torch.dtype) -> int:
        """Return what `read` allocates: nothing for a tensor that stays in its file, from which it is mapped."""
        first, *more = self.pieces[name]
        stored = self.store.tensors[first]
        if not more and DTYPES[stored.dtype] == dtype and Path(stored.file).is_file():
            return 0
        return math.prod(self.shape(name)) * dtype.itemsize

    def chunks(self, name: str, dtype: torch.dtype, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Yield rows ``first`` to ``last`` (exclusive; None: all) of a tensor, converted, a few thousand at a time.

        Raises:
            CheckpointError: see `read`.
        """
        begin = 0
        last = self.shape(name)[0] if last is None else last
        most = _chunk_rows(self.shape(name))
        for piece in self.pieces[name]:
            end = begin + self.store.tensors[piece].shape[0]
            for row in range(max(first, begin), min(last, end), most):
                stop = min(row + most, last, end)
                yield self._converted(piece, self.store.rows(piece, row - begin, stop - begin), dtype)
            begin = end

    def gather(self, name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Read some rows of a table that may be larger than memory.

        Args:
            name: of a tensor [rows, dim].
            rows: int64 [...].
            dtype: to convert to.

        Returns:
            [..., dim].
        """
        parts = [self.store.tensors[piece].shape[0] for piece in self.pieces[name]]
        out = torch.empty(*rows.shape, self.shape(name)[1], dtype=dtype)
        first = 0
        for piece, count in zip(self.pieces[name], parts, strict=True):
            inside = (rows >= first) & (rows < first + count)
            out[inside] = self._converted(piece, self.store.gather(piece, rows[inside] - first), dtype)
            first += count
        return out

    def _converted(self, piece: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        converted = tensor.to(dtype)
        if not _is_finite(converted):
            what = "NaN or infinite values"
            if _is_finite(tensor):
                what = f"values beyond the range of {dtype} (largest {tensor.abs().max():.3g})".replace("torch.", "")
            where = self.store.tensors[piece].file
            raise CheckpointError(f"{where}: {piece}: found {what}, expected finite weights")
        return converted


def identity_pieces(config: BltConfig) -> Pieces:
    """Return the names of a layout whose tensors are ours."""
    return {name: (name,) for name in expected_shapes(config)}


def _is_finite(tensor: Tensor) -> bool:
    """Decide whether all values are finite; read a few thousand rows at a time, for tables mapped from a file."""
    return all(bool(torch.isfinite(rows).all()) for rows in tensor.split(_chunk_rows(tensor.shape)))


def _chunk_rows(shape: Sequence[int]) -> int:
    """Return how many rows of a tensor to read at a time."""
    return min(_CHUNK_ROWS, max(1, _CHUNK_ELEMENTS // max(1, math.prod(shape[1:]))))
