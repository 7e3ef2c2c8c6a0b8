"""Lets many streams grow by a step each, and answers together what they ask for.

A round of a method drafts first and scores then; some score only what latents exist for before they score the rest.
Requests to score all are answered after those of any other kind, so that however the streams arrive, they meet at one
verification and share its call of the global transformer. All requests of a kind are turned into calls of the model's
parts, and equal calls run together: first all of the patcher, then all of the encoder, of the global transformer and of
the decoder.

Nobody waits for more than one step of each other stream; where no calls are shared, streams take their steps one after
the other. The prompt of a new text is a step for each piece of it, which runs alone: it has rows enough to be worth a
read of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from weakref import WeakSet

from fastblt.runtime.backends.batching import (
    SHARED_ROWS,
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
from fastblt.runtime.batching.growing_stream import GrowingStream, OnEnd, ignore_end
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.sequence.requests import ScoreRequest
from fastblt.runtime.sequence.session import Session, stay_alone

#: Order of the parts in a pass; calls of the same rank and kind run together.
_RANK: dict[type, int] = {PatcherCall: 0, EncoderCall: 1, GlobalCall: 2, DraftCall: 3, DecoderCall: 4}


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
        self._members: WeakSet[Session] = WeakSet()
        """Sessions that have joined the batch and not left it."""
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

    def step(self, streams: Sequence[ByteStream], on_end: OnEnd | None = None) -> list[GrowingStream]:
        """Let each stream grow by one step, as `ByteStream.step` does.

        Args:
            streams: at most `size`, each of them once.
            on_end: called with each stream as soon as its step has ended; what it raises ends the others. None: nobody
                has a chunk before all of them are returned.

        Returns:
            What came of each, in order: its chunk, or the error that ended it.

        Raises:
            BaseException: an interrupt, or what ``on_end`` raises. Streams that nobody has had the chunk of are closed.
        """
        growing: list[GrowingStream] = []
        try:
            for group in [streams] if self.shares_calls else [[stream] for stream in streams]:
                for stream in group:
                    growing.append(GrowingStream(stream, on_end or ignore_end))
                while waiting := [each for each in growing if each.request is not None]:
                    before_scoring = [each for each in waiting if not _scores(each)]
                    self._answer(before_scoring or waiting, together=len(group) > 1)
        except BaseException as error:
            # An interrupt between the steps: none of them is left waiting for an answer, or goes on without a chunk.
            for each in growing:
                if each.request is not None:
                    each.spoil(error)
                elif on_end is None:
                    each.close()
            raise
        return growing

    def close(self) -> None:
        """Let all streams leave, and let go of the memory; they can grow alone afterwards."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self.alone_because = "the scheduler is closed"
        for session in list(self._members):
            session.leave_batch = stay_alone
        self._members.clear()
        batch.close()

    def _answer(self, asking: list[GrowingStream], together: bool) -> None:
        """Answer one request of each stream."""
        sharing = []
        for each in asking:
            shares = together and not _is_long(each) and self._has_room(each.session)
            if not together or (shares and each.session not in self._members):
                each.leave_batch()
            if each.request is None:
                continue
            if shares:
                self._join(each.session)
                sharing.append(each)
            else:
                each.answer_alone()
        for each in sharing:
            each.begin_calls()
        while calling := [each for each in sharing if each.call is not None]:
            rank = min(map(_rank, calling))
            self._call([each for each in calling if _rank(each) == rank])

    def _has_room(self, session: Session) -> bool:
        """Return whether a session is in the batch, or can join it."""
        return self._batch is not None and (session in self._members or len(self._members) < self.slots)

    def _join(self, session: Session) -> None:
        """Let a session that is in no other batch join this one; again: do nothing."""
        if session not in self._members:
            session.leave_batch = partial(self._leave, session)
            self._members.add(session)

    def _leave(self, session: Session) -> None:
        session.leave_batch = stay_alone
        self._members.discard(session)
        if self._batch is not None:
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


def _scores(each: GrowingStream) -> bool:
    """Return whether a stream asks to score all that it has; it may, after a request that leaves something to score."""
    return isinstance(each.request, ScoreRequest) and not each.request.only_known


def _is_long(each: GrowingStream) -> bool:
    """Return whether a stream has more to score than is worth sharing."""
    session = each.session
    return isinstance(each.request, ScoreRequest) and session.length - session.scored > SHARED_ROWS


def _call_of(each: GrowingStream) -> PartCall:
    assert each.call is not None, "nothing is called"
    return each.call


def _rank(each: GrowingStream) -> tuple[int, str]:
    """Return where a call stands among others; those that are equal can share one call."""
    call = _call_of(each)
    return _RANK[type(call)], call.part(each.session.config)
