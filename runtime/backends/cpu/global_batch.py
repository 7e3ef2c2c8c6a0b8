"""Runs the global transformer for several sequences: patch embeddings to latents."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from fastblt.runtime.backends.batching import Answer, GlobalCall
from fastblt.runtime.backends.cpu.batched_graph import BatchedGraph, GroupCall
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.latent_store import LatentStore
from fastblt.runtime.backends.cpu.part_batch import Extent, PartBatch, Seated


class GlobalBatch(PartBatch):
    """Runs calls of `GlobalCall`.

    Args:
        graph: that runs the part.
        least_rows: fewest patches of a call.
        store: where decoders find latents.
    """

    def __init__(self, graph: BatchedGraph, least_rows: int, store: LatentStore) -> None:
        super().__init__("global", graph, least_rows)
        self._store = store

    def run(self, seated: Sequence[Seated], calls: Sequence[GlobalCall]) -> list[Answer]:
        """Return an answer to each call, without a result: latents go to the sequences' own buffers."""
        began = perf_counter()
        extents = [Extent(call.first_patch, max(call.patches, self.least_rows)) for call in calls]
        found: dict[int, Answer] = {}
        for group in self.groups(seated, extents):
            packed = self._pack(group, seated, calls)
            self.graph.run(packed, group)
            for member in group.members:
                (sequence, seat), call = seated[member.call], calls[member.call]
                first, row = member.position, (seat - group.first) * group.rows
                latents = packed.views["latent_kv"][row : row + call.patches]
                sequence.buffers.latent_kv.array[first : first + call.patches] = latents
                self._store.forget(seat, first)
            ended, share = perf_counter(), 1 / len(group.members)
            shares = Answer(None, (ended - began) * share, self.graph.moved_bytes(group), share)
            found |= {member.call: shares for member in group.members}
            began = ended
        return [found[index] for index in range(len(seated))]

    def _pack(self, group: Group, seated: Sequence[Seated], calls: Sequence[GlobalCall]) -> GroupCall:
        packed = self.graph.prepare(group, {"patches": group.rows, "latents": group.lanes * group.rows})
        embeddings = packed.views["patch_embeddings"]
        embeddings.fill(0)
        for index, member in enumerate(group.members):
            (sequence, seat), call = seated[member.call], calls[member.call]
            embeddings[seat - group.first, : call.patches] = sequence.buffers.patch_embeddings.array[: call.patches]
            if call.visible_from is not None:
                self.graph.see(packed, group, index, call.patches, 0, call.visible_from)
        return packed
