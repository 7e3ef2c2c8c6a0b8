"""Gathers calls of one part into groups: each sequence gets a lane with room for its rows, and classes are joined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from fastblt.runtime.backends.cpu.batched_graph import BatchedGraph
from fastblt.runtime.backends.cpu.lane_groups import Group, Member, make_groups

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence

#: A call costs about as much as reading this many bytes of weights more than it does.
_CALL_BYTES = 500_000
#: Attention takes about this many times as long for a byte of a cache as products for a byte of the weights.
_CACHE_COST = 2


class Seated(NamedTuple):
    """Holds a sequence, and where it has its lanes."""

    sequence: OnnxRuntimeSequence
    seat: int


class Extent(NamedTuple):
    """Describes the rows of a call."""

    position: int
    rows: int


class PartBatch:
    """Holds one part of a batch.

    Args:
        part: of the model.
        graph: that runs it.
        least_rows: fewest rows of a call.
    """

    def __init__(self, part: str, graph: BatchedGraph, least_rows: int) -> None:
        self.part = part
        self.graph = graph
        self.lanes = graph.lanes
        self.least_rows = least_rows

    def groups(self, seated: Sequence[Seated], extents: Sequence[Extent], room: int = 0) -> list[Group]:
        """Return the groups that calls run in, with lanes that hold all that their rows see.

        Args:
            seated: who calls.
            extents: their rows, padded to the fewest of the part.
            room: rows that the calls from this one on will write, 1 to `SHARED_ROWS`: lanes are made to hold them now.
        """
        lanes, part = self.lanes, self.part
        room = max(room, *[extent.rows for extent in extents])
        members = []
        for index, ((sequence, seat), (position, rows)) in enumerate(zip(seated, extents, strict=True)):
            lanes.place(seat, sequence.graphs[part].caches, position, rows, room)
            members.append(Member(index, seat, position, rows))
        classes = {lanes.class_of[member.seat] for member in members}
        if len(classes) > 1:
            self._join_classes(seated, sorted(classes))
        return make_groups(lanes, members)

    def _join_classes(self, seated: Sequence[Seated], classes: list[int]) -> None:
        """Move lanes to the next larger class that is in use, where that costs less than a call of their own."""
        lanes, slots = self.lanes, self.lanes.classes.slots
        saved = self.graph.graph.spec.weight_bytes + _CALL_BYTES
        for of, larger in pairwise(classes):
            mine = [each for each in seated if lanes.class_of[each.seat] == of]
            if len(mine) * (slots[larger] - slots[of]) * lanes.slot_bytes * _CACHE_COST <= saved:
                for each in mine:
                    lanes.join_class(each.seat, each.sequence.graphs[self.part].caches, larger)
