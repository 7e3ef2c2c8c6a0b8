"""Holds key/value caches of fixed addresses and shapes, as compiled code and CUDA graphs need them.

A windowed stack has a ring of slots: position p is in slot p modulo their number. What a slot holds follows from the
newest position alone, as long as nothing has been written more than `SPARE` positions past it; `StaticCache.intact`
decides that. Any other stack has a slot for each position, and calls see the first slots, in steps that double.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastblt.models.config import StackConfig
from fastblt.models.layers import Attend, attention, rope_table

#: Slots beyond a window, and rows of the longest call: what may be overwritten without harm.
SPARE = 64


class StaticCache(nn.Module):
    """Holds keys and values of every layer of a stack.

    Args:
        stack: the stack.
        positions: most positions, those of padding rows included.
        spare: slots beyond the window.
        ring: whether a windowed stack drops what is behind its window.
        dtype: of keys and values.
        device: of everything.
    """

    def __init__(
        self, stack: StackConfig, positions: int, spare: int, dtype: torch.dtype, device: torch.device, *, ring: bool
    ) -> None:
        super().__init__()
        self.window, self.layers = stack.window, stack.layers
        self.ring = ring and stack.window is not None
        slots = stack.window + spare if self.ring and stack.window is not None else positions
        slots += -slots % SPARE
        shape = (1, slots, stack.heads, stack.head_dim)
        for layer in range(stack.layers):
            for name in ("keys", "values"):
                self.register_buffer(f"{name}_{layer}", torch.zeros(shape, dtype=dtype, device=device))
        table = torch.view_as_real(rope_table(torch.arange(positions), stack.head_dim, stack.rope_theta))
        self.register_buffer("rope", table.to(device).contiguous())
        self.slots = torch.arange(slots, device=device)
        self._newest = -1

    def views(self) -> list[Tensor]:
        """Return the numbers of the slots that calls may see, int64, the shortest first."""
        total = len(self.slots)
        if self.ring:
            return [self.slots]
        steps = [SPARE << step for step in range(total.bit_length()) if SPARE << step < total]
        return [self.slots[:size] for size in (*steps, total)]

    def intact(self, position: int) -> bool:
        """Return whether the slots still hold all that a row at this position sees."""
        assert self.window is not None or not self.ring
        return not self.ring or self._newest - position + (self.window or 0) <= len(self.slots)

    def wrote(self, position: int, rows: int) -> None:
        """Note a call: ``rows`` rows from ``position`` on, those of padding included."""
        last = position + rows - 1
        self._newest = last if position == 0 else max(self._newest, last)

    def forget(self) -> None:
        """Note that another text begins."""
        self._newest = -1

    def clear(self) -> None:
        """Fill all slots with zeros."""
        for layer in range(self.layers):
            self.get_buffer(f"keys_{layer}").zero_()
            self.get_buffer(f"values_{layer}").zero_()

    def rows(self, control: Tensor, slots: Tensor) -> StaticRows:
        """Return what the layers share for new rows.

        Args:
            control: int64 [3, rows]: positions, one after the other, and the positions that each row sees: from the
                second number to before the third.
            slots: one of `views`, with room for all that the rows see.
        """
        positions, start, end = control.unbind(0)
        newest, count = positions[-1], slots.shape[0]
        held = newest - (newest - slots) % count
        mask = (held >= start.unsqueeze(1)) & (held < end.unsqueeze(1))
        return StaticRows(self, self.get_buffer("rope")[positions], positions % count, count, mask)


class StaticRows:
    """Holds what all layers of a stack share for new rows: rotations, mask, and where the rows are written."""

    def __init__(self, cache: StaticCache, rope: Tensor, at: Tensor, count: int, mask: Tensor) -> None:
        self.rope = rope
        self._cache, self._at, self._count, self._mask = cache, at, count, mask

    def attend(self, layer: int) -> Attend:
        """Return an ``attend`` that writes the rows to a layer's cache and reads what they see."""
        keys, values = (self._cache.get_buffer(f"{name}_{layer}") for name in ("keys", "values"))

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.index_copy_(1, self._at, k)
            values.index_copy_(1, self._at, v)
            return attention(q, keys[:, : self._count], values[:, : self._count], self._mask)

        return attend

    def run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        """Run blocks over the rows ``x`` [1, rows, dim]."""
        for index, layer in enumerate(layers):
            x = layer(x, self.rope, self.attend(index))
        return x
