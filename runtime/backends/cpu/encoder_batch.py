"""Runs the encoder for several sequences: rows to byte states, and patches to their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.batching import SHARED_ROWS, Answer, EncoderCall
from fastblt.runtime.backends.cpu.batched_graph import BatchedGraph, GroupCall
from fastblt.runtime.backends.cpu.buffers import POOL_STEP
from fastblt.runtime.backends.cpu.encoder_pieces import EncoderPiece, by_patch
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.part_batch import Extent, PartBatch, Seated
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import encodes_whole_patches

#: Most slots of a sequence's pool in a call of several: those of the open patch and of the new rows.
POOL_SLOTS = 128


class EncoderBatch(PartBatch):
    """Runs calls of `EncoderCall`.

    Args:
        config: the model's.
        graph: that runs the part.
        least_rows: fewest rows of a call.
        tables: sum up embeddings on the host; None: the graph does.
    """

    def __init__(self, config: BltConfig, graph: BatchedGraph, least_rows: int, tables: HostEmbeddings | None) -> None:
        super().__init__("encoder", graph, least_rows)
        self._tables = tables
        self._before = config.hash.context - 1
        self._reads_states = config.decoder_reads_states
        self._whole = encodes_whole_patches(config)
        self._ids = np.zeros((graph.lanes.size, SHARED_ROWS + self._before), dtype=np.int64)

    def run(self, seated: Sequence[Seated], calls: Sequence[EncoderCall]) -> list[Answer]:
        """Return an answer to each call, without a result: what is encoded goes to the sequences' own buffers."""
        pieces = [self._pieces(call) for call in calls]
        if max(map(len, pieces)) == 1:
            return self.encode(seated, [piece for (piece,) in pieces])
        found = [Answer(None, 0.0, 0.0, 0.0)] * len(seated)
        for turn in range(max(map(len, pieces))):
            taking = [index for index, mine in enumerate(pieces) if turn < len(mine)]
            answers = self.encode([seated[index] for index in taking], [pieces[index][turn] for index in taking])
            for index, answer in zip(taking, answers, strict=True):
                before = found[index]
                found[index] = Answer(
                    None,
                    before.seconds + answer.seconds,
                    before.moved_bytes + answer.moved_bytes,
                    before.calls + answer.calls,
                )
        return found

    def _pieces(self, call: EncoderCall) -> list[EncoderPiece]:
        whole = EncoderPiece(*call)
        return [whole] if self.least_rows == 1 or len(call.starts) == 1 else by_patch(whole, self._before)

    def encode(
        self,
        seated: Sequence[Seated],
        pieces: Sequence[EncoderPiece],
        drafted: NDArray[Any] | None = None,
        room: int = 0,
    ) -> list[Answer]:
        """Encode a piece of each sequence.

        Args:
            seated: whose sequences count.
            pieces: one for each.
            drafted: where the state of each piece's only row goes, [size, dim], by seat; None: all results go to the
                sequences' own buffers.
            room: as for `PartBatch.groups`.

        Returns:
            Answers without results.
        """
        began = perf_counter()
        extents = [Extent(call.position, max(len(call.ids) - self._before, self.least_rows)) for call in pieces]
        found: dict[int, Answer] = {}
        for group in self.groups(seated, extents, room):
            call = self._pack(group, seated, pieces)
            self.graph.run(call, group)
            for member in group.members:
                lane = member.seat - group.first
                if drafted is None:
                    self._keep(call, lane, seated[member.call], pieces[member.call])
                else:
                    drafted[member.seat] = call.views["states"][lane, 0]
            ended, share = perf_counter(), 1 / len(group.members)
            shares = Answer(None, (ended - began) * share, self.graph.moved_bytes(group), share)
            found |= {member.call: shares for member in group.members}
            began = ended
        return [found[index] for index in range(len(pieces))]

    def _pack(self, group: Group, seated: Sequence[Seated], pieces: Sequence[EncoderPiece]) -> GroupCall:
        asked = [pieces[member.call] for member in group.members]
        slots = max(call.position + group.rows - int(call.starts[0]) for call in asked)
        sizes = {
            "rows": group.rows,
            "patches": max(self.least_rows, *(len(call.starts) for call in asked)),
            "pool_slots": -(-slots // POOL_STEP) * POOL_STEP,
            "context_rows": group.rows + self._before,
        }
        packed = self.graph.prepare(group, sizes)
        views = packed.views
        # Patches that nobody asked for hold slot 0. Entries that no patch holds are multiplied by 0: none may be NaN.
        views["patch_start"].fill(0)
        views["patch_end"].fill(1)
        views["pool_index"].fill(0)
        views["pool"].fill(0)
        ids = self._ids[: group.lanes, : group.rows + self._before] if self._tables else views["ids"]
        ids.fill(0)
        for index, (member, call) in enumerate(zip(group.members, asked, strict=True)):
            lane, origin, patches = member.seat - group.first, int(call.starts[0]), len(call.starts)
            ids[lane, : len(call.ids)] = call.ids
            views["patch_start"][lane, :patches] = call.starts - origin
            views["patch_end"][lane, :patches] = call.ends - origin
            held = call.position - origin
            if held:
                views["pool_index"][lane] = held
                own = seated[member.call].sequence.buffers.pool.array
                views["pool"][lane, 0, :held] = own[origin : call.position]
            if call.visible_from is not None:
                self.graph.see(packed, group, index, len(call.ids) - self._before, 0, call.visible_from)
        if self._tables is not None:
            self._tables.sum_rows(ids, views["embedded"])
        return packed

    def _keep(self, packed: GroupCall, lane: int, seated: Seated, piece: EncoderPiece) -> None:
        """Copy what has been encoded to the sequence's own buffers, where the other parts find it."""
        views, own = packed.views, seated.sequence.buffers
        patches, rows, position = len(piece.starts), len(piece.ids) - self._before, piece.position
        at = slice(piece.first_patch, piece.first_patch + patches)
        own.patch_embeddings.array[at] = views["patch_embeddings"][lane, :patches]
        if self._reads_states:
            own.states.array[position : position + rows] = views["states"][lane, :rows]
        if self._whole:
            return  # the next call of this patch encodes all of it
        held = position - int(piece.starts[0])
        new = views["pool_rows"][lane, 0, :rows] if "pool_rows" in views else views["pool"][lane, 0, held : held + rows]
        own.pool.array[position : position + rows] = new
