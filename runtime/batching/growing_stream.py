"""Follows one stream through a round: what it asks for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeAlias

from fastblt.runtime.backends.batching import Answer, PartCall
from fastblt.runtime.generation import ByteStream, Chunk
from fastblt.runtime.sequence.requests import Request, Steps

#: Called with a stream whose step has ended.
OnEnd: TypeAlias = Callable[["GrowingStream"], None]


def ignore_end(_: GrowingStream) -> None:
    """Do nothing: whoever lets streams grow waits until all have ended their steps."""


class GrowingStream:
    """Runs a step of a stream up to its next request, its next call, or its end.

    Whatever is raised on the way ends the stream, and no other.

    Args:
        stream: that is to grow.
        on_end: called when the step has ended; what it raises is raised by whatever has brought the step to its end.

    Attributes:
        request: what the method asks for; None: the step has ended.
        call: what is to be called next to answer it; None: its calls have not begun, or have ended.
    """

    def __init__(self, stream: ByteStream, on_end: OnEnd) -> None:
        self.stream = stream
        self.session = stream.growing.session
        self.chunk: Chunk | None = None
        """What is new, after the step; None: the text had ended."""
        self.error: BaseException | None = None
        """What ended the stream, if anything did."""
        self.request: Request | None = None
        self.call: PartCall | None = None
        self._steps: Steps[Chunk | None] = stream.requests()
        self._on_end = on_end
        self._asked = 0.0
        self._share = 0.0
        self._resume(None)

    def leave_batch(self) -> None:
        """Take the session out of the batch that it is in."""
        try:
            self.session.leave_batch()
        except BaseException as error:
            self.spoil(error)

    def close(self) -> None:
        """Close the stream, whose step has ended; an error in that is noted."""
        try:
            self.stream.close()
        except BaseException as error:
            self.error = error

    def answer_alone(self) -> None:
        """Answer the request by calls of the sequence's own."""
        request = self.request
        assert request is not None, "the step has ended"
        self.session.waited += perf_counter() - self._asked
        try:
            answer = self.session.answer(request)
        except BaseException as error:
            self.fail(error)
        else:
            self._resume(answer)

    def begin_calls(self) -> None:
        """Go to the first call that answers the request."""
        request = self.request
        assert request is not None, "the step has ended"
        try:
            self._calls = self.session.calls(request)
        except BaseException as error:
            self.fail(error)
        else:
            self._share = 0.0
            self._next_call(None)

    def take(self, answer: Answer) -> None:
        """Go on with what a batch has answered to the call."""
        call = self.call
        assert call is not None, "nothing has been called"
        try:
            result = self.session.parts.take(call, answer)
        except BaseException as error:
            self.fail(error)
        else:
            self._share += answer.seconds
            self._next_call(result)

    def call_alone(self) -> None:
        """Make the call by the sequence itself."""
        call = self.call
        assert call is not None, "nothing has been called"
        began = perf_counter()
        try:
            result = self.session.parts.alone(call)
        except BaseException as error:
            self.fail(error)
        else:
            self._share += perf_counter() - began
            self._next_call(result)

    def fail(self, error: BaseException) -> None:
        """Raise an error where the stream asked last."""
        self.call = None
        self._go_on(lambda: self._steps.throw(error))

    def spoil(self, error: BaseException) -> None:
        """Raise the error of a call that has left anything in the caches."""
        self.session.parts.spoil()
        self.fail(error)

    def _next_call(self, result: Any) -> None:
        """Send what a call returned, and note the next call, or resume the step with the answer."""
        try:
            self.call = self._calls.send(result)
        except StopIteration as end:
            self.call = None
            self.session.waited += perf_counter() - self._asked - self._share
            self._resume(end.value)
        except BaseException as error:
            self.fail(error)

    def _resume(self, answer: Any) -> None:
        self._go_on(lambda: self._steps.send(answer))

    def _go_on(self, run: Callable[[], Request]) -> None:
        """Run the step to its next request, or to its end."""
        self.request = None
        try:
            self.request = run()
            self._asked = perf_counter()
        except StopIteration as end:
            self.chunk = end.value
        except BaseException as error:
            self.error, self.request = error, None
            self._steps.close()  # an interrupt may come when a request has been made
        if self.request is None:
            self._on_end(self)
