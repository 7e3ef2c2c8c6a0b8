"""Lets many streams grow by a step each, and answers together what they ask for.

A round of a method drafts first and scores then. Requests to draft or to denoise are answered before those to score, so
that however the streams arrive, they meet at one verification. All requests of a kind are turned into calls of the
model's parts, and equal calls run together: first all of the patcher, then all of the encoder, of the global
transformer and of the decoder.

Nobody waits for more than one step of each other stream; where no calls are shared, streams take their steps one after
the other. The prompt of a new text is a step for each piece of it, which runs alone: it has rows enough to be worth a
read of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastblt.runtime.backends.batching import (
    Batch,
    BatchingBackend,
    DecoderCall,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.batching.growing_stream import GrowingStream, OnEnd
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.sequence.requests import Score
from fastblt.runtime.sequence.session import Session, stay_alone

#: Most tokens to score that share calls with those of other streams.
SHARED_ROWS = 32
#: Order of the parts in a pass; calls of the same rank and kind run together.
_RANK: dict[type, int] = {PatcherCall: 0, EncoderCall: 1, GlobalCall: 2, DraftCall: 3, DecoderCall: 4}


def ignore_end(_: GrowingStream) -> None:
    """Do nothing: whoever lets streams grow waits until all have ended their steps."""


class RoundScheduler:
    """Grows streams of one backend together; one thread at a time may use it.

    Args:
        backend: of the streams' runtime. Where it cannot batch, the streams still grow by a step each, one by one.
        size: most streams at once.
        slots: most of them whose calls run together; None: all; 1: none.

    Attributes:
        alone_because: why no calls run together; empty: some do.

    Raises:
        CapacityError: there is no memory for so many ``slots``.
    """

    def __init__(self, backend: Backend, size: int, slots: int | None = None) -> None:
        self.size = size
        self.slots = size if slots is None else min(size, slots)
        self._sharing = 0
        """Sessions that have joined the batch."""
        self._batch: Batch | None = None
        self.alone_because = ""
        if self.slots < 2:
            self.alone_because = "no more than one text may share calls"
        elif not isinstance(backend, BatchingBackend):
            self.alone_because = f"{backend.name} runs one text at a time"
        else:
            try:
                self._batch = backend.new_batch(self.slots)
            except BundleError as error:  # graphs or engines of an earlier version
                self.alone_because = str(error)

    @property
    def shares_calls(self) -> bool:
        """Return whether calls of several streams run together."""
        return self._batch is not None

    def step(self, streams: Sequence[ByteStream], on_end: OnEnd = ignore_end) -> list[GrowingStream]:
        """Let each stream grow by one step, as `ByteStream.step` does.

        Args:
            streams: at most `size`, each of them once.
            on_end: called with each stream as soon as its step has ended; what it raises ends the others.

        Returns:
            What came of each, in order: its chunk, or the error that ended it.
        """
        growing: list[GrowingStream] = []
        try:
            for group in [streams] if self.shares_calls else [[stream] for stream in streams]:
                for stream in group:
                    growing.append(GrowingStream(stream, on_end))
                while waiting := [each for each in growing if each.request is not None]:
                    drafting = [each for each in waiting if not isinstance(each.request, Score)]
                    self._answer(drafting or waiting, together=len(group) > 1)
        except BaseException as error:
            # An interrupt between the steps: none of them is left waiting for an answer.
            for each in growing:
                if each.request is not None:
                    each.spoil(error)
            raise
        return growing

    def close(self) -> None:
        """Let all streams leave, and let go of the memory; they can grow alone afterwards."""
        if self._batch is not None:
            self._batch.close()

    def _answer(self, asking: list[GrowingStream], together: bool) -> None:
        """Answer one request of each stream."""
        sharing = []
        for each in asking:
            if together and not _is_long(each) and self._joins(each.session):
                sharing.append(each)
            else:
                if not together:
                    each.leave_batch()
                if each.request is not None:
                    each.answer_alone()
        for each in sharing:
            each.begin_calls()
        while calling := [each for each in sharing if each.call is not None]:
            rank = min(map(_rank, calling))
            self._call([each for each in calling if _rank(each) == rank])

    def _joins(self, session: Session) -> bool:
        """Let a session join the batch if there is room; return whether it is in it."""
        if self._batch is None:
            return False
        if session.leave_batch is stay_alone:
            if self._sharing >= self.slots:
                return False
            self._sharing += 1
            session.leave_batch = partial(self._leave, session)
        return True

    def _leave(self, session: Session) -> None:
        assert self._batch is not None, "no session has joined without a batch"
        session.leave_batch = stay_alone
        self._sharing -= 1
        self._batch.leave(session.sequence)

    def _call(self, calling: list[GrowingStream]) -> None:
        """Make one call of each stream, all of the same kind."""
        assert self._batch is not None, "calls are shared by a batch"
        calls = [(each.session.sequence, _call_of(each)) for each in calling]
        try:
            answers = self._batch.run(calls)
        except CapacityError:
            for each in calling:
                each.call_alone()
        except BaseException as error:
            for each in calling:
                each.spoil(error)
        else:
            for each, answer in zip(calling, answers, strict=True):
                each.take(answer)


def round_schedulers(backend: Backend, count: int, size: int, slots: int | None = None) -> list[RoundScheduler]:
    """Return schedulers for several threads, all with as many slots.

    Args:
        backend: see `RoundScheduler`.
        count: how many.
        size: most streams of each.
        slots: of each; None: ``size``, or half of that and so on where memory ends.

    Raises:
        CapacityError: there is no memory for so many ``slots``.
        BundleError: ``slots`` are asked for, and the graphs or engines take one sequence at a time.
    """
    most = size if slots is None else slots
    while True:
        made: list[RoundScheduler] = []
        try:
            for _ in range(count):
                made.append(RoundScheduler(backend, size, most))
        except CapacityError:
            for each in made:
                each.close()
            if slots is not None:
                raise
            most //= 2
        else:
            asked = slots is not None and made[0].slots > 1
            if asked and isinstance(backend, BatchingBackend) and not made[0].shares_calls:
                raise BundleError(made[0].alone_because)
            return made


def _is_long(each: GrowingStream) -> bool:
    """Return whether a stream has more to score than is worth sharing."""
    session = each.session
    return isinstance(each.request, Score) and session.length - session.scored > SHARED_ROWS


def _call_of(each: GrowingStream) -> PartCall:
    assert each.call is not None, "nothing is called"
    return each.call


def _rank(each: GrowingStream) -> tuple[int, str]:
    """Return where a call stands among others; those that are equal can share one call."""
    call = _call_of(each)
    return _RANK[type(call)], each.session.parts.part_of(call)
