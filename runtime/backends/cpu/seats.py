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
        """By seat. All else follows from it, and it changes at once: an interrupt leaves everyone one seat or none."""
        self._used = [0] * size
        """The turn in which each seat was used last."""
        self._turn = 0

    def of(self, sequence: OnnxRuntimeSequence) -> int:
        """Return a sequence's seat; -1: it has none."""
        return self.sequences.index(sequence) if sequence in self.sequences else -1

    def use(self, sequences: Sequence[OnnxRuntimeSequence]) -> list[int]:
        """Return the seats of sequences, -1 for those that have none, and note that they are in use."""
        self._turn += 1
        seats = {id(sequence): seat for seat, sequence in enumerate(self.sequences)}
        found = [seats.get(id(sequence), -1) for sequence in sequences]
        for seat in found:
            if seat >= 0:
                self._used[seat] = self._turn
        return found

    def idle(self) -> int | None:
        """Return the seat that has not been used for the longest; None: one is free."""
        if None in self.sequences:
            return None
        return min(range(len(self._used)), key=self._used.__getitem__)

    def first_free(self) -> int:
        """Return the first free seat, of which there is one."""
        return self.sequences.index(None)

    def take(self, seat: int, sequence: OnnxRuntimeSequence) -> None:
        """Give a sequence a seat that is free."""
        self._used[seat] = self._turn
        self.sequences[seat] = sequence

    def free(self, seat: int) -> None:
        """Let go of a seat."""
        self.sequences[seat] = None

    def hole(self) -> tuple[int, int] | None:
        """Return the last seat that is taken, and a free one before it; None: there is no such seat."""
        taken = len(self.sequences) - self.sequences.count(None)
        if None not in self.sequences[:taken]:
            return None
        last = next(seat for seat in reversed(range(len(self.sequences))) if self.sequences[seat] is not None)
        return last, self.first_free()

    def move(self, seat: int, to: int) -> None:
        """Give a seat's sequence another seat, which is free."""
        self._used[to] = self._used[seat]
        moved = self.sequences.copy()
        moved[to], moved[seat] = moved[seat], None
        self.sequences = moved
