"""Runs the patcher: when a session asks for entropies, and ahead of that where the question is known.

What a session asks after a decoder's row is the entropy after the most likely byte; what it asks after a draft is the
entropies after the drafted bytes. Queued behind the decoder, the patcher answers with the same wait.
"""

from __future__ import annotations

import numpy as np

from fastblt.runtime.backends.gpu.call import Call, pieces
from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.draft_chain import ID_BYTES
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS
from fastblt.runtime.backends.protocol import Floats, Ids


class PatcherCalls:
    """Runs the patcher's graph, on tokens of the host or on tokens that are on the device.

    Args:
        graph: the patcher's.
        stream: carries the work.
    """

    def __init__(self, graph: DeviceGraph, stream: Stream) -> None:
        self.graph = graph
        self._stream = stream

    def run(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `Backend.run_patcher`."""
        found = np.empty(len(ids), dtype=np.float32)
        for first, end in pieces(len(ids)):
            seen = None if visible_from is None else visible_from[first:end]
            call = Call(self.graph, position + first, end - first, visible_from=seen)
            call.write("ids", ids[first:end])
            call.run()
            results = self.graph.fetch()
            self._stream.synchronize()
            found[first:end] = results["entropy"][0, : end - first]
        return found

    def queue(self, position: int, tokens: int, rows: int) -> Floats:
        """Queue the patcher on tokens that are on the device.

        Args:
            position: of the first token.
            tokens: device address of the tokens, int64 [rows].
            rows: number of tokens, at most `CALL_ROWS`.

        Returns:
            Entropies float32 [rows], to be read after a wait and before the patcher's next call.
        """
        call = Call(self.graph, position, rows)
        call.arrays["ids"][:] = 0
        call.send()
        self._stream.copy(self.graph.upload_address("ids"), tokens, rows * ID_BYTES)
        call.launch()
        return self.graph.fetch()["entropy"][0, :rows]


class LookAhead:
    """Asks the patcher before the session does, and keeps the answer for the session's next question.

    Args:
        patcher: its calls; None where the model has none, so that nothing is asked.
        max_bytes: last position that may be asked for.
    """

    def __init__(self, patcher: PatcherCalls | None, max_bytes: int) -> None:
        self._patcher = patcher
        self._max_bytes = max_bytes
        self._answer: tuple[int, Ids, Floats] | None = None

    def queue(self, position: int, tokens: int, rows: int) -> Floats | None:
        """Queue the patcher on tokens on the device; see `PatcherCalls.queue`. None where it cannot be asked."""
        if self._patcher is None or self.graph_for(position, rows) is None:
            return None
        return self._patcher.queue(position, tokens, rows)

    def graph_for(self, position: int, rows: int) -> DeviceGraph | None:
        """Return the patcher's graph, for a caller that queues it behind the decoder; None where nothing is asked."""
        if self._patcher is None or position > self._max_bytes or rows > CALL_ROWS:
            return None
        return self._patcher.graph

    def keep(self, position: int, ids: Ids, entropies: Floats) -> None:
        """Keep copies of tokens at ``position``, int64 [n], and of the entropies after them, float32 [n]."""
        self._answer = position, ids.copy(), entropies.copy()

    def forget(self) -> None:
        """Drop the answer that was kept."""
        self._answer = None

    def take(self, position: int, ids: Ids) -> Floats | None:
        """Return the entropies after ``ids`` if they are known, else None; whatever was kept is dropped."""
        answer, self._answer = self._answer, None
        if answer is None:
            return None
        known_position, known_ids, entropies = answer
        if known_position != position or len(ids) > len(known_ids):
            return None
        return entropies[: len(ids)] if np.array_equal(known_ids[: len(ids)], ids) else None
