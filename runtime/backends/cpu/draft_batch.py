"""Drafts for several sequences: the decoder runs once a byte for all of them, each from its own last byte."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from fastblt.runtime.backends.batching import Answer, DraftCall
from fastblt.runtime.backends.cpu.batched_graph import GroupCall
from fastblt.runtime.backends.cpu.decoder_batch import DecoderBatch, rows_of
from fastblt.runtime.backends.cpu.encoder_batch import EncoderBatch
from fastblt.runtime.backends.cpu.encoder_pieces import EncoderPiece
from fastblt.runtime.backends.cpu.lane_classes import BATCHED_ROWS
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.part_batch import Extent, Seated
from fastblt.runtime.backends.protocol import Drafted, Ids


class _Draft:
    """Holds one sequence's draft as it grows."""

    def __init__(self, seated: Seated, call: DraftCall) -> None:
        self.seated = seated
        self.call = call
        self.context: Ids = call.ids.copy()
        self.tokens: Ids = np.empty(call.most, dtype=np.int64)
        self.probabilities = np.empty(call.most, dtype=np.float32)
        self.count = 0
        self.more = True
        self.seconds = self.encoder_seconds = self.moved = self.calls = 0.0

    @property
    def position(self) -> int:
        return self.call.position + self.count

    def answer(self) -> Answer:
        drafted = Drafted(self.tokens[: self.count], self.probabilities[: self.count], self.encoder_seconds)
        return Answer(drafted, self.seconds, self.moved, self.calls)


class DraftBatch:
    """Runs calls of `DraftCall`.

    Args:
        decoder: decodes the rows.
        encoder: makes the byte states that they read; None: they read none.
    """

    def __init__(self, decoder: DecoderBatch, encoder: EncoderBatch | None) -> None:
        self._decoder = decoder
        self._encoder = encoder
        lanes = decoder.lanes
        # By seat; what nobody drafts for are zeros.
        self._states = np.zeros((lanes.size, lanes.dim), dtype=lanes.dtype)
        self._tokens = np.zeros(lanes.size, dtype=np.int64)
        self._latent_index = np.zeros(lanes.size, dtype=np.int64)

    def run(self, seated: Sequence[Seated], calls: Sequence[DraftCall]) -> list[Answer]:
        """Return an answer to each call."""
        drafts = [_Draft(each, call) for each, call in zip(seated, calls, strict=True)]
        self._tokens.fill(0)
        self._latent_index.fill(0)
        for draft in drafts:
            sequence, seat = draft.seated
            latent = draft.call.latent
            index = latent + self._decoder.store.index(seat, sequence.buffers.latent_kv, latent, latent)
            self._latent_index[seat], self._tokens[seat] = index, draft.call.ids[-1]
        running = drafts
        while running:
            if self._encoder is not None:
                self._encode(self._encoder, running)
            self._step(running)
            running = [draft for draft in running if draft.more and draft.count < draft.call.most]
        return [draft.answer() for draft in drafts]

    def _encode(self, encoder: EncoderBatch, running: Sequence[_Draft]) -> None:
        """Make the byte states of the next rows; they are encoded again when they are scored."""
        pieces = []
        for draft in running:
            at = np.array([draft.position], dtype=np.int64)
            seen = draft.call.visible_from or None
            pieces.append(EncoderPiece(draft.position, draft.context, at, at + 1, seen))
        answers = encoder.encode([draft.seated for draft in running], pieces, self._states)
        for draft, (_, seconds, moved, calls) in zip(running, answers, strict=True):
            draft.encoder_seconds += seconds
            draft.seconds += seconds
            draft.moved += moved
            draft.calls += calls

    def _step(self, running: Sequence[_Draft]) -> None:
        """Decode the next row of each draft, and choose the token after it."""
        began, decoder = perf_counter(), self._decoder
        extents = [Extent(draft.position, decoder.least_rows) for draft in running]
        # Room for the whole draft: the window does not slide in the middle of it, beyond where scoring begins.
        room = min(BATCHED_ROWS, max(draft.call.most - draft.count for draft in running))
        for group in decoder.groups([draft.seated for draft in running], extents, room):
            packed = self._run(group, running)
            ended, share = perf_counter(), 1 / len(group.members)
            moved = decoder.graph.moved_bytes(group)
            for member in group.members:
                draft = running[member.call]
                draft.seconds += (ended - began) * share
                draft.moved += moved
                draft.calls += share
                self._choose(draft, packed, member.seat - group.first)
            began = perf_counter()

    def _run(self, group: Group, running: Sequence[_Draft]) -> GroupCall:
        packed = self._decoder.prepare(group)
        seats, views = slice(group.first, group.first + group.lanes), packed.views
        views["latent_index"][:] = self._latent_index[seats, None]
        if self._encoder is None:
            views["ids"][:] = self._tokens[seats, None]
        else:
            views["states"][:] = self._states[seats, None]
        for index, member in enumerate(group.members):
            seen = running[member.call].call.visible_from
            if seen:
                self._decoder.graph.see(packed, group, index, group.rows, 0, seen)
        self._decoder.graph.run(packed, group)
        return packed

    def _choose(self, draft: _Draft, packed: GroupCall, lane: int) -> None:
        """Note the token after a draft's row."""
        views, count, call = packed.views, draft.count, draft.call
        token = int(views["best"][lane, 0])
        if call.pick is not None:
            token, draft.more = call.pick(rows_of(packed, lane, 1))
        draft.tokens[count], draft.probabilities[count] = token, views["probability"][lane, 0]
        draft.count = count + 1
        self._tokens[draft.seated.seat] = token
        if self._encoder is not None:
            draft.context[:-1] = draft.context[1:]
            draft.context[-1] = token
