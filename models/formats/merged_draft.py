"""Presents a checkpoint whose draft decoder has low-rank matrices as one with full matrices."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastblt.models.draft_decoder import DRAFT_PREFIX, LORA_A, LORA_B, merge
from fastblt.models.formats.checkpoint import Checkpoint, expected_shapes
from fastblt.models.formats.stores import JoinedStore, StoredTensor


def merged_draft(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of the same model with full matrices, which are computed in fp32 when they are read.

    One that has no low-rank matrices is returned unchanged.
    """
    if checkpoint.config.draft_rank is None:
        return checkpoint
    config = dataclasses.replace(checkpoint.config, draft_rank=None)
    missing = {name: shape for name, shape in expected_shapes(config).items() if name not in checkpoint.pieces}
    pieces = {name: pieces for name, pieces in checkpoint.pieces.items() if not name.endswith((LORA_A, LORA_B))}
    pieces |= {name: (name,) for name in missing}
    store = JoinedStore([("", checkpoint.store), ("", _MergedStore(checkpoint, missing))])
    return dataclasses.replace(checkpoint, config=config, store=store, pieces=pieces)


class _MergedStore:
    """Stores matrices of the draft decoder, each the decoder's plus a product of two low-rank ones, in fp32.

    Args:
        source: a checkpoint with the factors.
        shapes: of the matrices, by name.
    """

    def __init__(self, source: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> None:
        self._source = source
        self.tensors = {name: StoredTensor(shape, "F32", str(source.path)) for name, shape in shapes.items()}

    def read(self, name: str) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.read`."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.rows`."""
        layer = name.removesuffix(".weight")
        base = self._rows_of(f"decoder.{name.removeprefix(DRAFT_PREFIX)}", first, last)
        a = self._source.read(f"{layer}.{LORA_A}", torch.float32)
        return merge(base, a, self._rows_of(f"{layer}.{LORA_B}", first, last))

    def _rows_of(self, name: str, first: int, last: int) -> Tensor:
        return torch.cat(list(self._source.chunks(name, torch.float32, first, last)))

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.gather`."""
        return self.read(name)[rows]
