"""Queues the same work again and again, as one CUDA graph where it can be recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastblt.runtime.backends.gpu.cuda import CapturedGraph, Stream
from fastblt.runtime.backends.gpu.graph import DeviceGraph, ShapeClass

#: Queues the current class of a graph.
RunGraph = Callable[[DeviceGraph], None]
Classes = tuple[ShapeClass, ...]


class RecordedWork:
    """Holds work on fixed memory, of which only the contents change; each time the caller waits for it in the end.

    Args:
        stream: carries the work.
        graphs: that the work runs.
        queue: queues it; runs graphs by the function that it is called with.
        times: how often it runs before it is recorded.
    """

    def __init__(
        self, stream: Stream, graphs: Sequence[DeviceGraph], queue: Callable[[RunGraph], None], times: int
    ) -> None:
        self._stream, self._graphs, self._queue, self._times = stream, graphs, queue, times
        self._runs: dict[Classes, int] = {}
        self._recorded: dict[Classes, CapturedGraph | None] = {}
        """By the graphs' current classes; None where that cannot be recorded."""
        self._queued_after = -1

    @property
    def recorded(self) -> bool:
        """Return whether the work is a CUDA graph, for the current classes of its graphs."""
        return self._recorded.get(self._classes()) is not None

    def _classes(self) -> Classes:
        return tuple(graph.current for graph in self._graphs)

    def settle(self) -> None:
        """Wait where a caller was interrupted before it waited: the device may still read what the host wrote."""
        if self._queued_after == self._stream.synchronizations:
            self._stream.synchronize()

    def queue(self) -> None:
        """Queue the work once, with the current classes of its graphs."""
        classes = self._classes()
        runs = self._runs.get(classes, 0)
        if classes not in self._recorded and runs >= self._times and all(graph.recordable for graph in self._graphs):
            self._recorded[classes] = self._stream.capture(lambda: self._queue(DeviceGraph.record))
        recorded = self._recorded.get(classes)
        self._queued_after = self._stream.synchronizations
        if recorded is not None:
            self._stream.launch(recorded)
        else:
            self._queue(DeviceGraph.launch)
            self._runs[classes] = runs + 1
