"""Drafts for several sequences: the decoder runs once a byte for all of them, each from its own last byte."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from time import perf_counter

import numpy as np

from fastblt.runtime.backends.batching import SHARED_ROWS, Answer, DraftCall
from fastblt.runtime.backends.cpu.batched_graph import GroupCall
from fastblt.runtime.backends.cpu.decoder_batch import DecoderBatch, rows_of
from fastblt.runtime.backends.cpu.encoder_batch import EncoderBatch
from fastblt.runtime.backends.cpu.encoder_pieces import EncoderPiece
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.part_batch import Extent, Seated
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.protocol import CapacityError, Drafted, Ids


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
        self.error: Exception | None = None
        self.seconds = self.encoder_seconds = self.moved = self.calls = 0.0

    @property
    def position(self) -> int:
        return self.call.position + self.count

    def answer(self) -> Answer:
        drafted = Drafted(self.tokens[: self.count], self.probabilities[: self.count], self.encoder_seconds)
        return Answer(drafted, self.seconds, self.moved, self.calls, self.error)


class DraftBatch:
    """Runs calls of `DraftCall`.

    Args:
        decoder: decodes the rows.
        encoder: makes the byte states that they read; None: they read none.
        vocab_size: number of tokens that exist.
    """

    def __init__(self, decoder: DecoderBatch, encoder: EncoderBatch | None, vocab_size: int) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._vocab = vocab_size
        lanes = decoder.lanes
        # By seat; what nobody drafts for are zeros.
        self._states = np.zeros((lanes.size, lanes.dim), dtype=lanes.dtype)
        self._tokens = np.zeros(lanes.size, dtype=np.int64)
        self._latent_index = np.zeros(lanes.size, dtype=np.int64)

    def run(self, seated: Sequence[Seated], calls: Sequence[DraftCall]) -> list[Answer]:
        """Return an answer to each call."""
        drafts = [_Draft(each, call) for each, call in zip(seated, calls, strict=True)]
        # What a failed draft left behind may be NaN, which idle lanes would write behind their sequences' rows.
        self._states.fill(0)
        self._tokens.fill(0)
        self._latent_index.fill(0)
        running = [draft for draft in drafts if draft.call.most]
        for draft in running:
            sequence, seat = draft.seated
            latent = draft.call.latent
            index = latent + self._decoder.store.index(seat, sequence.buffers.latent_kv, latent, latent)
            self._latent_index[seat], self._tokens[seat] = index, draft.call.ids[-1]
        while running:
            try:
                self._grow(running)
            except CapacityError as error:
                if any(draft.count for draft in drafts):  # it cannot begin again: picks have been made
                    raise graph_error("decoder", error) from error
                raise
            running = [draft for draft in running if draft.more and draft.count < draft.call.most]
        return [draft.answer() for draft in drafts]

    def _grow(self, running: Sequence[_Draft]) -> None:
        """Draft a byte for each; more of them where they share one call, as long as none ends."""
        decoder = self._decoder
        left = [draft.call.most - draft.count for draft in running]
        # Room for the whole draft: the window does not slide in the middle of it, beyond where scoring begins. The
        # last call needs it for rows that nobody reads, too.
        extra = decoder.least_rows - 1
        room = min(SHARED_ROWS, max(left) + extra)
        extents = [Extent(draft.position, decoder.least_rows) for draft in running]
        groups = decoder.groups([draft.seated for draft in running], extents, room)
        group = groups[0]
        # Idle lanes have no room for more rows, and rows that see less are placed one by one.
        if len(groups) > 1 or group.lanes > len(running) or any(draft.call.visible_from for draft in running):
            if self._encoder is not None:
                self._encode(self._encoder, running)
            for group in groups:
                self._step(self._prepare(group, running), group, running)
            return
        packed = self._prepare(group, running)
        for step in range(self._steps_in_place(running, min(room - extra, *left))):
            if self._encoder is not None:
                self._encode(self._encoder, running)
            if step:
                decoder.graph.advance(packed, group)
            self._step(packed, group, running)
            if not all(draft.more for draft in running):
                return

    def _steps_in_place(self, running: Sequence[_Draft], most: int) -> int:
        """Return how many rows may follow one another before a lane has to begin elsewhere."""
        classes = self._decoder.lanes.classes
        if classes.exact:
            while most > 1 and any(
                classes.base(draft.position) != classes.base(draft.position + most - 1) for draft in running
            ):
                most -= 1
        return most

    def _encode(self, encoder: EncoderBatch, running: Sequence[_Draft]) -> None:
        """Make the byte states of the next rows; they are encoded again when they are scored."""
        pieces = []
        for draft in running:
            at = np.array([draft.position], dtype=np.int64)
            seen = draft.call.visible_from or None
            pieces.append(EncoderPiece(draft.position, draft.context, at, at + 1, seen))
        left = max(draft.call.most - draft.count for draft in running)
        room = min(SHARED_ROWS, left + encoder.least_rows - 1)
        answers = encoder.encode([draft.seated for draft in running], pieces, self._states, room)
        for draft, answer in zip(running, answers, strict=True):
            draft.encoder_seconds += answer.seconds
            draft.seconds += answer.seconds
            draft.moved += answer.moved_bytes

    def _stop(self, draft: _Draft) -> None:
        """End a draft whose row is not to be relied on: the steps of others see nothing of it, not even NaN."""
        draft.more = False
        seat = draft.seated.seat
        self._states[seat], self._tokens[seat], self._latent_index[seat] = 0, 0, 0

    def _prepare(self, group: Group, running: Sequence[_Draft]) -> GroupCall:
        """Return the call of a group, with its rows placed."""
        packed = self._decoder.prepare(group)
        packed.views["latent_index"][:] = self._latent_index[group.first : group.first + group.lanes, None]
        for index, member in enumerate(group.members):
            seen = running[member.call].call.visible_from
            if seen:
                self._decoder.graph.see(packed, group, index, group.rows, 0, seen)
        return packed

    def _step(self, packed: GroupCall, group: Group, running: Sequence[_Draft]) -> None:
        """Decode the next row of the drafts of a group, and choose the tokens after them."""
        began, graph, views = perf_counter(), self._decoder.graph, packed.views
        seats = slice(group.first, group.first + group.lanes)
        if self._encoder is None:
            views["ids"][:] = self._tokens[seats, None]
        else:
            views["states"][:] = self._states[seats, None]
        graph.run(packed, group)
        share, moved = 1 / len(group.members), graph.moved_bytes(group)
        best, probabilities = views["best"][:, 0].tolist(), views["probability"][:, 0].tolist()
        seconds = (perf_counter() - began) * share
        for member in group.members:
            draft, lane = running[member.call], member.seat - group.first
            count, token = draft.count, best[lane]
            draft.seconds += seconds
            draft.moved += moved
            draft.calls += share
            if draft.call.pick is not None:
                try:
                    token, draft.more = draft.call.pick(rows_of(packed, lane, 1))
                except Exception as error:
                    draft.error = error
                    self._stop(draft)
                    continue
            draft.tokens[count], draft.probabilities[count] = token, probabilities[lane]
            self._tokens[member.seat] = token
            draft.count = count + 1
            if not 0 <= token < self._vocab or not isfinite(probabilities[lane]):
                self._stop(draft)  # whoever takes the answer finds the same
                continue
            if self._encoder is not None:
                draft.context[:-1] = draft.context[1:]
                draft.context[-1] = token
