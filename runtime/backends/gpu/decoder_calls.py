"""Runs the decoder: bytes and latents become distributions over the next byte."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastblt.runtime.backends.gpu.call import Call, pieces
from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.device_rows import DeviceRows
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.patcher_calls import LookAhead
from fastblt.runtime.backends.gpu.row_chain import RowChain
from fastblt.runtime.backends.protocol import DecoderRows, Ids


class DecoderCalls:
    """Runs the decoder's graph, and the patcher ahead behind a row that is decoded alone.

    Args:
        graph: the decoder's.
        stream: carries the work.
        latents: that rows read, as keys and values.
        states: of bytes, where the decoder reads the encoder's; None where it has an embedding of its own.
        look_ahead: asks the patcher.
    """

    def __init__(
        self, graph: DeviceGraph, stream: Stream, latents: DeviceRows, states: DeviceRows | None, look_ahead: LookAhead
    ) -> None:
        self.graph = graph
        self.reads_states = states is not None
        """Whether the encoder has to read a byte before the decoder can."""
        self._stream = stream
        self._latents = latents
        self._states = states
        self._look_ahead = look_ahead
        self._row_chain: RowChain | None = None

    def run(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`."""
        patcher = self._look_ahead.graph_for(position + 1, 1) if len(ids) == 1 and block == 0 else None
        if patcher is not None:
            return self._run_row(patcher, position, ids, latents, visible_from)
        cuts, found = list(pieces(len(ids), block)), []
        for first, end in cuts:
            seen = None if visible_from is None else visible_from[first:end]
            inside = block if end == len(ids) else 0
            self.queue(position + first, ids[first:end], latents[first:end], inside, seen)
            results = self.graph.fetch()
            self._stream.synchronize()
            rows = decoder_rows(results, end - first)
            # The next piece overwrites the results of this one.
            found.append(rows if len(cuts) == 1 else rows.copy())
        return found[0] if len(found) == 1 else _joined(found)

    def _run_row(
        self, patcher: DeviceGraph, position: int, ids: Ids, latents: Ids, visible_from: Ids | None
    ) -> DecoderRows:
        """Decode one row, and ask the patcher about the byte that the row finds most likely."""
        if self._row_chain is None:
            self._row_chain = RowChain(self._stream, self.graph, patcher)
        if self._states is not None:
            self._states.copy_to(self.graph, position, 1)
        index = self.place_latent(int(latents[0]))
        seen = None if visible_from is None else int(visible_from[0])
        results, entropies = self._row_chain.run(position, None if self.reads_states else ids, index, seen)
        row = decoder_rows(results, 1)
        self._look_ahead.keep(position + 1, row.best, seen, entropies)
        return row

    def warm_up(self) -> None:
        """Decode a single token 0, so that such a row is recorded; what that leaves in the caches is overwritten."""
        nothing = np.zeros(1, dtype=np.int64)
        for _ in range(2):  # the second one is recorded
            self.run(0, nothing, nothing)

    def queue(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: int | Ids | None = None
    ) -> None:
        """Queue the decoder on tokens of the host; the arguments are those of `run`."""
        call = self.begin(position, latents, block, visible_from)
        if not self.reads_states:
            call.write("ids", ids)
        call.run()

    @property
    def state_bytes(self) -> int:
        """Return the size of a byte state; 0 where none is read."""
        return 0 if self._states is None else self._states.row_bytes

    def place_latent(self, latent: int) -> int:
        """Make a latent readable by calls of one row, and return its ``latent_index`` there."""
        return latent - self._read_from(latent, 1)

    def _read_from(self, first: int, count: int) -> int:
        """Make latents readable, and return the one that has ``latent_index`` 0."""
        if self.graph.whole:
            self._latents.check(first, count)
            return 0
        # An engine of an earlier version: it takes as many latents as there are rows.
        self._latents.copy_to(self.graph, first, count)
        return first

    def begin(
        self,
        position: int,
        latents: Ids,
        block: int = 0,
        visible_from: int | Ids | None = None,
    ) -> Call:
        """Begin a call of the rows that read these latents; the caller writes ``ids`` where there are any."""
        rows, first = len(latents), int(latents[0])
        count = int(latents[-1]) + 1 - first
        call = Call(self.graph, position, rows, block=block, visible_from=visible_from)
        origin = self._read_from(first, count)
        call.write("latent_index", latents - origin if origin else latents)
        if self._states is not None:
            self._states.copy_to(self.graph, position, rows)
        return call


def decoder_rows(results: Mapping[str, np.ndarray], count: int) -> DecoderRows:
    """Return views of the first ``count`` rows of a call's results."""
    return DecoderRows(*[results[name][0, :count] for name in DecoderRows._fields])


def _joined(parts: list[DecoderRows]) -> DecoderRows:
    """Return the rows of several calls as those of one."""
    return DecoderRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
