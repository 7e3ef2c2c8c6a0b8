"""Running a stack of blocks: over whole sequences, or over new rows with a cache."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastblt.models.cache import StackCache
from fastblt.models.config import StackConfig
from fastblt.models.layers import causal_attend, rope_table


def run_sequence(layers: Iterable[nn.Module], x: Tensor, config: StackConfig) -> Tensor:
    """Run causal (windowed) blocks over ``x`` [batch, length, dim], positions from 0."""
    length = x.shape[1]
    rope = rope_table(torch.arange(length, device=x.device), config.head_dim, config.rope_theta)
    attend = causal_attend(length, config.window, x.device)
    for layer in layers:
        x = layer(x, rope, attend)
    return x


def run_cached(layers: Iterable[nn.Module], x: Tensor, cache: StackCache, position: int) -> Tensor:
    """Run blocks over new rows ``x`` [1, rows, dim] at ``position``, ``position + 1``, ... with their cache."""
    rows = cache.rows(position, x.shape[1])
    for index, layer in enumerate(layers):
        x = layer(x, rows.rope, rows.attend(index))
    return x
