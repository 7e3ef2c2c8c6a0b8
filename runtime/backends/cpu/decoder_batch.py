"""Runs the decoder, or the draft decoder, for several sequences."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from fastblt.runtime.backends.batching import Answer, DecoderCall
from fastblt.runtime.backends.cpu.batched_graph import BatchedGraph, GroupCall
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.latent_store import LatentStore
from fastblt.runtime.backends.cpu.part_batch import Extent, PartBatch, Seated
from fastblt.runtime.backends.protocol import DecoderRows


class DecoderBatch(PartBatch):
    """Runs calls of `DecoderCall`.

    Args:
        part: ``decoder`` or ``draft``.
        graph: that runs the part.
        least_rows: fewest rows of a call.
        store: of the latents that rows read.
    """

    def __init__(self, part: str, graph: BatchedGraph, least_rows: int, store: LatentStore) -> None:
        super().__init__(part, graph, least_rows)
        self.store = store
        self._latents = len(store.memory.array)

    def run(self, seated: Sequence[Seated], calls: Sequence[DecoderCall]) -> list[Answer]:
        """Return an answer to each call; results are views if one call of the graph was enough."""
        began = perf_counter()
        extents = [Extent(call.position, max(len(call.ids), self.least_rows)) for call in calls]
        groups = self.groups(seated, extents)
        found: dict[int, Answer] = {}
        for group in groups:
            packed = self._pack(group, seated, calls)
            self.graph.run(packed, group)
            ended, share = perf_counter(), 1 / len(group.members)
            moved = self.graph.moved_bytes(group)
            for member in group.members:
                rows = rows_of(packed, member.seat - group.first, len(calls[member.call].ids))
                result = rows if len(groups) == 1 else rows.copy()
                found[member.call] = Answer(result, (ended - began) * share, moved, share)
            began = ended
        return [found[index] for index in range(len(calls))]

    def prepare(self, group: Group) -> GroupCall:
        """Return the call of a group, with its rows placed."""
        return self.graph.prepare(group, {"rows": group.rows, "latents": self._latents})

    def _pack(self, group: Group, seated: Sequence[Seated], calls: Sequence[DecoderCall]) -> GroupCall:
        packed = self.prepare(group)
        views = packed.views
        reads_states = "states" in views
        index, inputs = views["latent_index"], views["states" if reads_states else "ids"]
        index.fill(0)
        inputs.fill(0)
        for number, member in enumerate(group.members):
            call, sequence = calls[member.call], seated[member.call].sequence
            lane, rows = member.seat - group.first, len(call.ids)
            states = sequence.buffers.states.array
            inputs[lane, :rows] = states[call.position : call.position + rows] if reads_states else call.ids
            first, last = int(call.latents[0]), int(call.latents[-1])
            added = self.store.index(member.seat, sequence.buffers.latent_kv, first, last)
            np.add(call.latents, added, out=index[lane, :rows])
            if call.block or call.visible_from is not None:
                self.graph.see(packed, group, number, rows, call.block, call.visible_from)
        return packed


def rows_of(packed: GroupCall, lane: int, count: int) -> DecoderRows:
    """Return the first ``count`` rows of a lane, as views."""
    views = packed.views
    return DecoderRows(
        views["best"][lane, :count],
        views["probability"][lane, :count],
        views["entropy"][lane, :count],
        views["logits"][lane, :count],
    )
