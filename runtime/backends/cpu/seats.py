"""Keeps the seats of a batch: which sequence has which, and who has to leave when there is none left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence


class Seats:
    """Numbers sequences; numbers stay dense, so that the lanes of a batch lie beside one another.

    Args:
        size: number of seats.
    """

    def __init__(self, size: int) -> None:
        self.sequences: list[OnnxRuntimeSequence | None] = [None] * size
        self._used = [0] * size
        """The turn in which each seat was used last."""
        self._turn = 0
        self._seats: dict[int, int] = {}
        """Seats by the identity of the sequence that has it."""

    def of(self, sequence: OnnxRuntimeSequence) -> int:
        """Return a sequence's seat; -1: it has none."""
        return self._seats.get(id(sequence), -1)

    def use(self, sequences: Sequence[OnnxRuntimeSequence]) -> list[int]:
        """Return the seats of sequences, -1 for those that have none, and note that they are in use."""
        self._turn += 1
        found = [self._seats.get(id(sequence), -1) for sequence in sequences]
        for seat in found:
            if seat >= 0:
                self._used[seat] = self._turn
        return found

    def idle(self) -> int | None:
        """Return the seat that has not been used for the longest; None: one is free."""
        if None in self.sequences:
            return None
        return min(range(len(self._used)), key=self._used.__getitem__)

    def take(self, sequence: OnnxRuntimeSequence) -> int:
        """Give a sequence the first free seat, and return it."""
        seat = self.sequences.index(None)
        self.sequences[seat], self._used[seat], self._seats[id(sequence)] = sequence, self._turn, seat
        return seat

    def free(self, seat: int) -> None:
        """Let go of a seat."""
        del self._seats[id(self.sequences[seat])]
        self.sequences[seat] = None

    def hole(self) -> tuple[int, int] | None:
        """Return the last seat that is taken, and a free one before it; None: there is no such seat."""
        taken = len(self._seats)
        if None not in self.sequences[:taken]:
            return None
        free = self.sequences.index(None)
        return max(self._seats.values()), free

    def move(self, seat: int, to: int) -> None:
        """Give a seat's sequence another seat, which is free."""
        self.sequences[to], self._used[to] = self.sequences[seat], self._used[seat]
        self._seats[id(self.sequences[to])] = to
        self.sequences[seat] = None
