"""Describes a graph that failed while it ran: one line with its name, the reason, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

#: Most characters of what a library reported.
_LONGEST = 400


class GraphError(ValueError):
    """Reports a graph that failed while it ran: the text in progress is lost, the next one begins anew.

    Only where the message denies it, the backend cannot be used any more.
    """


def graph_error(graph: object, reason: object, *, lost: bool = False) -> GraphError:
    """Return the error of a graph.

    Args:
        graph: its file, or what it computes.
        reason: exception, or text, of the library that ran it; may be of several lines, or contain anything.
        lost: whether the device does not answer any more.
    """
    text = str(reason) or (type(reason).__name__ if isinstance(reason, Exception) else "")
    line = next((line for line in text.splitlines() if line.strip()), "no reason")
    shown = "".join(char if char.isprintable() else "?" for char in line[:_LONGEST])
    if lost:
        advice = "the GPU is lost to this process, which has to be started again"
    elif isinstance(reason, MemoryError) or "memory" in text or "alloc" in text.lower():
        advice = "the runtime can be used again; load it with a smaller max_bytes, or free memory"
    else:
        advice = "the runtime can be used again; check the bundle with 'fastblt verify', and report it if that passes"
    return GraphError(f"{graph}: failed while it ran ({shown}); {advice}")


def reporting(part: str, *kinds: type[Exception]) -> Callable[[F], F]:
    """Decorate a backend's method that runs a part.

    What it raises for an exception of these kinds is what ``failure(part, error)`` of the backend returns.
    """

    def decorate(call: F) -> F:
        @wraps(call)
        def reported(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return call(self, *args, **kwargs)
            except kinds as error:
                failure = self.failure(part, error)
                if failure is error:
                    raise
                raise failure from error

        return cast(F, reported)

    return decorate
