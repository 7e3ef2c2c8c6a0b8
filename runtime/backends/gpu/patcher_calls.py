"""Runs the patcher: when a session asks for entropies, and ahead of that where the question is known.

What a session asks after a decoder's row is the entropy after the most likely byte; what it asks after a draft is the
entropies after the drafted bytes. Queued behind the decoder, the patcher answers with the same wait.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastblt.runtime.backends.gpu.call import Call, pieces
from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS
from fastblt.runtime.backends.protocol import Floats, Ids


class Asked(NamedTuple):
    """Holds an answer of the patcher, and what it was asked."""

    position: int
    """Of the first token."""
    ids: Ids
    seen: int
    """First position that the tokens may see."""
    entropies: Floats
    """After each token."""
    together: int
    """Sequences that shared the call."""


class PatcherCalls:
    """Runs the patcher's graph on tokens of the host.

    Args:
        graph: the patcher's.
        stream: carries the work.
    """

    def __init__(self, graph: DeviceGraph, stream: Stream) -> None:
        self._graph = graph
        self._stream = stream

    def run(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`."""
        found = np.empty(len(ids), dtype=np.float32)
        for first, end in pieces(len(ids)):
            seen = None if visible_from is None else visible_from[first:end]
            call = Call(self._graph, position + first, end - first, visible_from=seen)
            call.write("ids", ids[first:end])
            call.run()
            results = self._graph.fetch()
            self._stream.synchronize()
            found[first:end] = results["entropy"][0, : end - first]
        return found


class LookAhead:
    """Asks the patcher before the session does, and keeps the answer for the session's next question.

    Args:
        graph: the patcher's; None where the model has none, so that nothing is asked.
        max_bytes: last position that may be asked for.
    """

    def __init__(self, graph: DeviceGraph | None, max_bytes: int) -> None:
        self._graph = graph
        self._max_bytes = max_bytes
        self.answer: Asked | None = None

    def graph_for(self, position: int, rows: int) -> DeviceGraph | None:
        """Return the patcher's graph, for a caller that queues it behind the decoder; None where nothing is asked."""
        return self._graph if position <= self._max_bytes and rows <= CALL_ROWS else None

    def keep(self, position: int, ids: Ids, visible_from: int | None, entropies: Floats, together: int = 1) -> None:
        """Keep an answer.

        Args:
            position: of the first token.
            ids: int64 [n], the tokens; copied.
            visible_from: first position that each of them may see; None: 0.
            entropies: float32 [n], after each of them; copied.
            together: sequences that shared the call.
        """
        self.answer = Asked(position, ids.copy(), visible_from or 0, entropies.copy(), together)

    def forget(self) -> None:
        """Drop the answer that was kept."""
        self.answer = None

    def take(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats | None:
        """Return the entropies after ``ids`` if they are known, else None; whatever was kept is dropped.

        Args:
            position: of the first token.
            ids: int64 [n].
            visible_from: int64 [n], first position that each of them may see; None: 0. An end of document among the
                tokens hides more from those after it than was known when they were asked about.
        """
        found, self.answer = self.answer, None
        if found is None or found.position != position or len(ids) > len(found.ids):
            return None
        same_view = found.seen == 0 if visible_from is None else bool((visible_from == found.seen).all())
        return found.entropies[: len(ids)] if same_view and np.array_equal(found.ids[: len(ids)], ids) else None
