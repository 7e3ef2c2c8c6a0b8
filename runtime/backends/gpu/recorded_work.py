"""Queues the same work again and again, as one CUDA graph where it can be recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastblt.runtime.backends.gpu.bound_graph import BoundGraph, ShapeClass
from fastblt.runtime.backends.gpu.cuda import CapturedGraph, Stream

#: Queues the current class of a graph.
RunGraph = Callable[[BoundGraph], None]
Classes = tuple[ShapeClass, ...]


class RecordedWork:
    """Holds work on fixed memory, of which only the contents change; each time the caller waits for it in the end.

    Args:
        stream: carries the work.
        graphs: that the work runs.
    """

    def __init__(self, stream: Stream, graphs: Sequence[BoundGraph]) -> None:
        self._stream, self._graphs = stream, graphs
        self._queued: set[Classes] = set()
        self._recorded: dict[Classes, CapturedGraph | None] = {}
        """By the graphs' classes; None where that cannot be recorded."""
        self._queued_after = -1

    def settle(self) -> None:
        """Wait where a caller was interrupted before it waited: the device may still read what the host wrote."""
        if self._queued_after == self._stream.synchronizations:
            self._stream.synchronize()

    def queue(self, work: Callable[[RunGraph], None]) -> None:
        """Queue the work once, with the current classes of its graphs; it is recorded when they occur again.

        Args:
            work: queues it, always the same; runs graphs by the function that it is called with.
        """
        classes = tuple(graph.current for graph in self._graphs)
        again = classes in self._queued and classes not in self._recorded
        if again and all(graph.recordable for graph in self._graphs):
            self._recorded[classes] = self._stream.capture(lambda: work(BoundGraph.record))
        recorded = self._recorded.get(classes)
        self._queued_after = self._stream.synchronizations
        if recorded is not None:
            self._stream.launch(recorded)
        else:
            work(BoundGraph.launch)
            self._queued.add(classes)
