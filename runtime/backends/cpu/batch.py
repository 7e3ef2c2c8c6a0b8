"""Runs sequences of one backend together: each has a lane in the caches of every stack, and calls cover many lanes.

A call with many rows is worth a read of the weights of its own: it runs alone, over the sequence's own caches of this
stack, whose lane the sequence gives up; those of the other stacks stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from fastblt.runtime.backends.batching import (
    SHARED_ROWS,
    Answer,
    DecoderCall,
    DraftCall,
    EncoderCall,
    PartCall,
)
from fastblt.runtime.backends.cpu.batch_parts import BatchParts
from fastblt.runtime.backends.cpu.encoder_batch import POOL_SLOTS
from fastblt.runtime.backends.cpu.lanes import Lanes
from fastblt.runtime.backends.cpu.latent_store import LATENTS
from fastblt.runtime.backends.cpu.part_batch import Seated
from fastblt.runtime.backends.cpu.seats import Seats
from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence
from fastblt.runtime.backends.protocol import BackendSequence, CapacityError

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend


class OnnxRuntimeBatch:
    """Implements `fastblt.runtime.backends.batching.Batch`.

    Args:
        backend: of the sequences.
        size: most of them.
    """

    def __init__(self, backend: OnnxRuntimeBackend, size: int) -> None:
        self.size = size
        self._backend = backend
        self._config = backend.config
        self._seats = Seats(size)
        self._parts: BatchParts | None = BatchParts(backend, size)

    @property
    def lanes(self) -> Mapping[str, Lanes]:
        """Return the lanes of every stack, by part."""
        return self._open().lanes

    @property
    def packed_bytes(self) -> int:
        """Return the bytes that are packed for calls, at most."""
        return self._open().packed_bytes

    @property
    def copied(self) -> Counter[str]:
        """Return the bytes of caches that have been copied, by reason; see `Lanes.copied`."""
        found = Counter[str]()
        for lanes in self.lanes.values():
            found.update(lanes.copied)
        return found

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        """Implement `Batch.run`."""
        parts = self._open()
        sequences = self._check(calls)
        try:
            return self._answer(parts, sequences, [call for _, call in calls])
        except CapacityError:
            for sequence in sequences:
                self.leave(sequence)
            raise
        except BaseException:
            for sequence in sequences:
                self.drop(sequence)
            raise

    def _answer(
        self, parts: BatchParts, sequences: Sequence[OnnxRuntimeSequence], calls: Sequence[PartCall]
    ) -> list[Answer]:
        answers: dict[int, Answer] = {}
        sharing = []
        for index, (sequence, call) in enumerate(zip(sequences, calls, strict=True)):
            if self._is_long(call):
                answers[index] = self._alone(parts, sequence, call)
            else:
                sharing.append(index)
        if sharing:
            mine = [sequences[index] for index in sharing]
            seated = [Seated(*each) for each in zip(mine, self._seat(mine), strict=True)]
            found = parts.run(seated, [calls[index] for index in sharing])
            answers |= zip(sharing, found, strict=True)
        return [answers[index] for index in range(len(calls))]

    def leave(self, sequence: BackendSequence) -> None:
        """Implement `Batch.leave`."""
        if isinstance(sequence, OnnxRuntimeSequence) and sequence.batch is self:
            seat = self._seats.of(sequence)
            if seat >= 0:
                self._open().leave(seat, sequence)
                self._seats.free(seat)
            sequence.batch = None

    def drop(self, sequence: OnnxRuntimeSequence) -> None:
        """Let go of a sequence that ends or has failed; what it has computed here is lost."""
        seat = self._seats.of(sequence)  # a call of its own that was interrupted may have left it no batch, but a seat
        if seat >= 0:
            self._open().drop(seat)
            self._seats.free(seat)
        if sequence.batch is self:
            sequence.batch = None

    def close(self) -> None:
        """Implement `Batch.close`."""
        if self._parts is None:
            return
        for sequence in self._seats.sequences:
            if sequence is not None:
                self.leave(sequence)
        self._parts = None
        self._backend.forget_batch(self)

    def _open(self) -> BatchParts:
        if self._parts is None:
            raise ValueError("batch: found a closed one, expected one that is open")
        return self._parts

    def _check(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[OnnxRuntimeSequence]:
        """Return the sequences of calls that can run together: of this backend, open, and in no other batch."""
        if not 1 <= len(calls) <= self.size:
            raise ValueError(f"batch: found {len(calls)} calls, expected 1 to {self.size}")
        if len({id(sequence) for sequence, _ in calls}) < len(calls):
            raise ValueError("batch: found several calls of one sequence, expected one of each")
        kinds = {"drafts" if isinstance(call, DraftCall) else call.part(self._config) for _, call in calls}
        if len(kinds) > 1:
            raise ValueError(f"batch: found calls of {' and '.join(sorted(kinds))}, expected one kind")
        found = []
        for sequence, _ in calls:
            if not isinstance(sequence, OnnxRuntimeSequence) or sequence.backend is not self._backend:
                raise ValueError("sequence: found one of another backend, expected one of the batch's")
            if sequence.batch is not self and sequence.closed:
                raise ValueError("sequence: found a closed one, expected one that is open")
            found.append(sequence)
        for sequence in found:
            if sequence.batch is not self:
                sequence.leave_batch()
        return found

    def _seat(self, sequences: Sequence[OnnxRuntimeSequence]) -> list[int]:
        """Return the seats of sequences; who has none gets one, and seats become dense."""
        parts, seats = self._open(), self._seats
        found = seats.use(sequences)
        for index, sequence in enumerate(sequences):
            if found[index] < 0:
                idle = seats.idle()
                if idle is not None:
                    leaving = seats.sequences[idle]
                    assert leaving is not None, "every seat is taken"
                    self.leave(leaving)
                seat = seats.first_free()
                parts.drop(seat)  # what an interrupt may have left there
                sequence.batch = self
                seats.take(seat, sequence)
                found[index] = seat
        hole = seats.hole()
        if hole is None:
            return found
        while hole is not None:
            seat, to = hole
            parts.copy(seat, to)
            seats.move(seat, to)
            parts.drop(seat)
            hole = seats.hole()
        return [seats.of(sequence) for sequence in sequences]

    def _alone(self, parts: BatchParts, sequence: OnnxRuntimeSequence, call: PartCall) -> Answer:
        """Let a sequence make a call by itself, over its own caches; those of other stacks stay in the batch."""
        began, part = perf_counter(), call.part(self._config)
        [seat] = self._seats.use([sequence])
        if seat >= 0:
            parts.leave_part(part, seat, sequence)
        result = sequence.run_in_place(call)
        moved = sequence.moved_bytes(part, call[0], call.rows(self._config))
        return Answer(result, perf_counter() - began, moved, 1.0)

    def _is_long(self, call: PartCall) -> bool:
        """Return whether a call has too many rows to share it with others."""
        rows = call.rows(self._config)
        if isinstance(call, EncoderCall):
            slots = call.position + rows - int(call.starts[0])
            return rows > SHARED_ROWS or len(call.starts) > SHARED_ROWS or slots > POOL_SLOTS
        if isinstance(call, DecoderCall) and int(call.latents[-1]) - int(call.latents[0]) >= LATENTS:
            return True
        return rows > SHARED_ROWS
