"""Holds the preallocated key/value caches of the eager incremental path."""

from __future__ import annotations

import torch
from torch import Tensor

from fastblt.models.config import StackConfig
from fastblt.models.layers import Attend, attention, rope_table


class StackCache:
    """Holds keys and values of every layer of a stack; slot = position, so that rewinding needs no work.

    Rows at and after the caller's length are garbage and will be overwritten.
    """

    def __init__(self, config: StackConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, 1, capacity, config.heads, config.head_dim)
        self.window = config.window
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.rope = rope_table(torch.arange(capacity, device=device), config.head_dim, config.rope_theta)

    def rows(self, position: int, count: int, block: int = 0, visible_from: Tensor | None = None) -> CacheRows:
        """Return what the layers share for new rows at ``position``, ``position + 1``, ...

        Args:
            position: slot of the first row.
            count: rows.
            block: the last ``block`` rows are denoised together and see each other; the others are causal.
            visible_from: int64 [count], first position that each row may see; None: 0.
        """
        start = 0 if self.window is None else max(0, position - self.window + 1)
        end = position + count
        mask: Tensor | None = None
        if count > 1 or visible_from is not None:
            row = torch.arange(position, end, device=self.keys.device).unsqueeze(1)
            key = torch.arange(start, end, device=self.keys.device).unsqueeze(0)
            mask = key <= row
            if block:
                mask = mask | (row >= end - block)
            if self.window is not None:
                mask = mask & (key > row - self.window)
            if visible_from is not None:
                mask = mask & (key >= visible_from.unsqueeze(1))
        return CacheRows(self, position, start, end, mask)


class CacheRows:
    """Holds what all layers of a stack share for new rows: rotations, mask, and the live part of the cache."""

    def __init__(self, cache: StackCache, position: int, start: int, end: int, mask: Tensor | None) -> None:
        self.rope = cache.rope[position:end]
        self._cache, self._position, self._start, self._end, self._mask = cache, position, start, end, mask

    def attend(self, layer: int) -> Attend:
        """Return an ``attend`` that appends the rows to a layer's cache and reads its live part."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[:, self._position : self._end] = k
            values[:, self._position : self._end] = v
            live = slice(self._start, self._end)
            return attention(q, keys[:, live], values[:, live], self._mask)

        return attend
