"""Finds the documents inside whole sequences: an EOS token ends the document that it belongs to.

A document is a contiguous range of positions, so its first position determines what a row may see of it.
`fastblt.runtime.sequence.documents` keeps the same numbers one token at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastblt.models.patching import Patches
from fastblt.models.tokens import EOS_ID


def first_of_document(ends: Tensor) -> Tensor:
    """Return the first index of each element's document.

    Args:
        ends: bool [batch, length]: the element ends its document.

    Returns:
        int64 [batch, length].
    """
    index = torch.arange(1, ends.shape[1], device=ends.device)
    first = torch.zeros(ends.shape, dtype=torch.int64, device=ends.device)
    first[:, 1:] = torch.where(ends[:, :-1], index, 0)
    return first.cummax(1).values


def first_bytes(ids: Tensor) -> Tensor:
    """Return the first position of each position's document, int64, like ``ids`` [batch, length]."""
    return first_of_document(ids == EOS_ID)


def first_patches(ids: Tensor, patches: Patches) -> Tensor:
    """Return the first patch of each patch's document, int64 [batch, patches]; a patch with an EOS ends a document."""
    patch_of = patches.closes.long().cumsum(1) - patches.closes.long()
    found = torch.zeros_like(patches.lengths)
    found.scatter_add_(1, patch_of, (ids == EOS_ID).long())
    return first_of_document(found > 0)
