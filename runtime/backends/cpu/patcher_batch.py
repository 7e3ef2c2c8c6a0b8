"""Runs the patcher for several sequences."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from fastblt.runtime.backends.batching import Answer, PatcherCall
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.part_batch import Extent, PartBatch, Seated
from fastblt.runtime.backends.protocol import Floats


class PatcherBatch(PartBatch):
    """Runs calls of `PatcherCall`."""

    def run(self, seated: Sequence[Seated], calls: Sequence[PatcherCall]) -> list[Answer]:
        """Return an answer to each call; results are views if one call of the graph was enough."""
        began = perf_counter()
        extents = [Extent(call.position, max(len(call.ids), self.least_rows)) for call in calls]
        found: dict[int, Answer] = {}
        groups = self.groups(seated, extents)
        for group in groups:
            entropies = self._run(group, calls)
            ended, share = perf_counter(), 1 / len(group.members)
            moved = self.graph.moved_bytes(group)
            for member in group.members:
                rows = entropies[member.seat - group.first, : len(calls[member.call].ids)]
                result = rows if len(groups) == 1 else rows.copy()
                found[member.call] = Answer(result, (ended - began) * share, moved, share)
            began = ended
        return [found[index] for index in range(len(calls))]

    def _run(self, group: Group, calls: Sequence[PatcherCall]) -> Floats:
        call = self.graph.prepare(group, {"rows": group.rows})
        ids = call.views["ids"]
        ids.fill(0)
        for index, member in enumerate(group.members):
            asked = calls[member.call]
            count = len(asked.ids)
            ids[member.seat - group.first, :count] = asked.ids
            if asked.visible_from is not None:
                self.graph.see(call, group, index, count, 0, asked.visible_from)
        self.graph.run(call, group)
        entropies: Floats = call.views["entropy"]
        return entropies
