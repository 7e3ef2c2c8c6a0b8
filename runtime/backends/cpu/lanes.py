"""Holds the caches that sequences of a batch have in one stack: a lane each, beside one another in memory.

A sequence's own caches are copied into its lane when it joins, up to the window, and what it has computed there is
copied back when it leaves. In between, rows are copied when it outgrows its lane, when its window reaches the end of
it, when it rewinds to before the lane begins, when its lane joins those of a larger class, and when its seat changes.

Whatever is raised half way, an interrupt included, leaves no lane that another sequence could read as its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fastblt.runtime.backends.cpu.buffers import KvBuffers
from fastblt.runtime.backends.cpu.lane_classes import LaneClasses
from fastblt.runtime.backends.cpu.lane_memory import LaneMemory

#: In place of the first row that a sequence's own caches lack: they have all.
_NONE = 1 << 62


class Lanes:
    """Holds the lanes of one stack. Sequences are named by seats, 0 to ``size - 1``; a lane's number is the seat's.

    Args:
        names: of the caches.
        dim: width of a slot.
        dtype: of the caches.
        size: most sequences.
        classes: sizes of lanes.
    """

    def __init__(self, names: list[str], dim: int, dtype: np.dtype[Any], size: int, classes: LaneClasses) -> None:
        self.names = names
        self.size = size
        self.dim = dim
        self.dtype = dtype
        self.classes = classes
        self.slot_bytes = len(names) * dim * dtype.itemsize
        self.class_of = [-1] * size
        """Class of each seat's lane; -1: none."""
        self.base = [0] * size
        """Position of slot 0 of each lane."""
        self.end = [0] * size
        """Position after the last row in each lane; what is behind it, nobody reads."""
        self._new = [_NONE] * size
        """Position of the first row in each lane that the sequence's own caches lack."""
        self.copied = Counter[str]()
        """Bytes of caches that were copied, by reason: ``join``, ``growth``, ``slide``, ``move``, ``leave``."""
        self._buffers: list[dict[str, LaneMemory]] = [{} for _ in classes.slots]
        self._filled: set[tuple[int, int]] = set()
        """Class and seat of the lanes that have been claimed and not cleared since."""

    def buffers(self, of: int) -> dict[str, LaneMemory]:
        """Return the lanes of a class by cache, [size, slots, dim]: reserved when they are first asked for.

        Raises:
            CapacityError: there is no memory for them.
        """
        found = self._buffers[of]
        if not found:
            slots = self.classes.slots[of]
            found = {name: LaneMemory(self.size, slots, self.dim, self.dtype) for name in self.names}
            self._buffers[of] = found
        return found

    def place(self, seat: int, own: KvBuffers, position: int, rows: int, room: int) -> None:
        """Let a seat have a lane with all that rows from ``position`` on see, and book these rows as its last ones.

        Args:
            seat: of the sequence.
            own: the sequence's own caches.
            position: of the first row.
            rows: number of rows that will be written.
            room: slots that a call may write to from the first row on, >= ``rows``, at most `SHARED_ROWS`.

        Raises:
            CapacityError: there is no memory for a lane; the sequence can leave with all that it has computed.
        """
        of, base = self.class_of[seat], self.base[seat]
        classes = self.classes
        if of < 0 or position > self.end[seat] or position < base:
            self._load(seat, own, position, room)
        elif not classes.fits(base, position) or position + room - base > classes.slots[of]:
            wanted = classes.base(position)
            if wanted < base:
                self._load(seat, own, position, room)
            else:
                self._shift(seat, own, wanted, position, max(of, classes.least(position + room - wanted)))
        self.end[seat] = position + rows
        if position < self._new[seat]:
            self._new[seat] = position

    def _load(self, seat: int, own: KvBuffers, position: int, room: int) -> None:
        """Fill a seat's lane from its own caches, which first get what it has computed since."""
        self.leave(seat, own)
        base = self.classes.base(position)
        of = self.classes.least(position + room - base)
        count = position - base
        for name, buffer in self._claim(seat, of).items():
            buffer.array[seat, :count] = own.buffers[name].array[base:position]
        self.copied["join"] += count * self.slot_bytes
        self.class_of[seat], self.base[seat], self.end[seat] = of, base, position

    def _shift(self, seat: int, own: KvBuffers, base: int, position: int, of: int) -> None:
        """Let a seat's lane begin at ``base``, in a class; rows that it no longer holds go to its own caches."""
        before, old = self.class_of[seat], self.base[seat]
        self._write_back(seat, own, base, "slide")
        count = position - base
        new, reason = (self.buffers(of), "slide") if of == before else (self._claim(seat, of), "growth")
        for name, buffer in self.buffers(before).items():
            # Flat arrays are copied in place where they overlap, others by way of a third one.
            source, target = buffer.array[seat].reshape(-1), new[name].array[seat].reshape(-1)
            first = (base - old) * self.dim
            target[: count * self.dim] = source[first : first + count * self.dim]
        self.copied[reason] += count * self.slot_bytes
        self.class_of[seat], self.base[seat] = of, base
        if of != before:
            self._clear(seat, before)

    def _write_back(self, seat: int, own: KvBuffers, end: int, reason: str) -> None:
        """Copy the rows before ``end`` that a seat's own caches lack."""
        first, base = self._new[seat], self.base[seat]
        if first >= end:
            return
        for name, buffer in self.buffers(self.class_of[seat]).items():
            own.buffers[name].array[first:end] = buffer.array[seat, first - base : end - base]
        self.copied[reason] += (end - first) * self.slot_bytes
        self._new[seat] = end

    def join_class(self, seat: int, own: KvBuffers, of: int) -> None:
        """Move a seat's lane to a class with more slots."""
        self._shift(seat, own, self.base[seat], self.end[seat], of)

    def leave(self, seat: int, own: KvBuffers) -> None:
        """Copy what the own caches of a seat's sequence lack, and let go of its lane; does nothing without one."""
        if self.class_of[seat] >= 0:
            self._write_back(seat, own, self.end[seat], "leave")
            self._forget(seat)

    def drop(self, seat: int) -> None:
        """Let go of a seat's lane, and of what the sequence's own caches lack; does nothing without one."""
        if self.class_of[seat] >= 0:
            self._forget(seat)

    def copy(self, seat: int, to: int) -> None:
        """Let another seat have the same lane as a seat, instead of what it has."""
        self.drop(to)
        of = self.class_of[seat]
        if of < 0:
            return
        count = self.end[seat] - self.base[seat]
        for buffer in self._claim(to, of).values():
            buffer.array[to, :count] = buffer.array[seat, :count]
        self.copied["move"] += count * self.slot_bytes
        for values in (self.base, self.end, self._new, self.class_of):
            values[to] = values[seat]

    def _claim(self, seat: int, of: int) -> dict[str, LaneMemory]:
        """Return the lanes of a class; the seat's, which is going to be filled, holds nothing of a sequence before."""
        found = self.buffers(of)
        if (of, seat) in self._filled:
            self._clear(seat, of)
        self._filled.add((of, seat))
        return found

    def _forget(self, seat: int) -> None:
        of = self.class_of[seat]
        self.class_of[seat], self.base[seat], self.end[seat], self._new[seat] = -1, 0, 0, _NONE
        self._clear(seat, of)

    def _clear(self, seat: int, of: int) -> None:
        """Clear a lane: the next sequence that has it must not find NaN there, which no mask hides."""
        for memory in self.buffers(of).values():
            memory.clear(seat)
        self._filled.discard((of, seat))
