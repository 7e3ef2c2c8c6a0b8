"""Runs a stack of blocks over whole sequences, or over new rows with a cache."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastblt.models.cache import StackCache
from fastblt.models.config import StackConfig
from fastblt.models.layers import causal_attend, keeping, rope_table


def run_sequence(
    layers: Iterable[nn.Module],
    x: Tensor,
    config: StackConfig,
    visible_from: Tensor | None = None,
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Run causal (windowed) blocks over ``x`` [batch, length, dim], positions from 0 (see `causal_attend`).

    The keys and values of each layer are appended to ``kept``, if there is such a list.
    """
    length = x.shape[1]
    rope = rope_table(torch.arange(length, device=x.device), config.head_dim, config.rope_theta)
    attend = causal_attend(length, config.window, x.device, visible_from)
    if kept is not None:
        attend = keeping(attend, kept)
    for layer in layers:
        x = layer(x, rope, attend)
    return x


def run_cached(
    layers: Iterable[nn.Module], x: Tensor, cache: StackCache, position: int, visible_from: Tensor | None = None
) -> Tensor:
    """Run blocks over new rows ``x`` [1, rows, dim] at ``position``, ``position + 1``, ... with their cache.

    ``visible_from``, int64 [rows]: first position that each row may see; None: 0.
    """
    rows = cache.rows(position, x.shape[1], visible_from=visible_from)
    for index, layer in enumerate(layers):
        x = layer(x, rows.rope, rows.attend(index))
    return x
