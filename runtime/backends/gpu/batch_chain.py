"""Chains the calls of drafts of several sequences on the device: each step reads there what the step before chose.

As `fastblt.runtime.backends.gpu.draft_chain`, with a row for every sequence in each call. A row that is decoded alone,
and the patcher behind it, are a draft of one byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.controls import Controls, write_controls
from fastblt.runtime.backends.gpu.batch_graph import BatchGraph
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, Views, aligned
from fastblt.runtime.backends.gpu.draft_chain import ID_BYTES, Place
from fastblt.runtime.backends.gpu.recorded_work import RecordedWork, RunGraph
from fastblt.runtime.backends.gpu.tensor_table import Block
from fastblt.runtime.backends.protocol import Floats, Ids

#: Size of a probability on the device, float32.
_FLOAT_BYTES = 4


class BatchPart(NamedTuple):
    """Describes the calls of one graph in the drafts."""

    graph: BatchGraph
    layout: Block
    """Of what a call uploads."""
    calls: int
    rows: int
    """Of each call and sequence, padding included."""


class PlacedRows(NamedTuple):
    """Holds where the rows of one sequence go, in the calls of one part."""

    place: Place
    rows: int
    """One of each call, or those of the only call, without padding."""
    visible_from: int | None


class _Inputs:
    """Holds what the host writes for all calls of one graph.

    Args:
        part: the calls.
        memory: page-locked, for as many blocks as there are calls, uint8.
        address: on the device, where ``memory`` is sent to.
    """

    def __init__(self, part: BatchPart, memory: NDArray[np.uint8], address: int) -> None:
        self.part, self._address = part, address
        blocks = memory.reshape(part.calls, part.layout.bytes)
        self.arrays = {
            name: blocks[:, f.offset : f.offset + f.bytes].view(f.dtype).reshape(part.calls, *f.shape)
            for name, f in part.layout.fields.items()
        }
        """By tensor, [calls, sequences, ...]."""

    def write(self, index: int, placed: PlacedRows) -> None:
        """Write what places the rows of a sequence; each call has one row, or the only call has all."""
        place, window = placed.place, self.part.graph.window
        base = place.position - place.slot
        controls = [self.arrays[name][:, index] for name in ("positions", "visible_start", "visible_end")]
        writes = self.arrays["write_index"][:, index : index + 1]
        if self.part.rows == 1:
            # Calls of one row are placed all at once, as one call of as many rows would be.
            positions, start, end = (each[:, 0] for each in controls)
            once = Controls(positions, start, end, writes[0])
            write_controls(once, place.position, self.part.calls, base, window, 0, placed.visible_from)
        else:
            for call, arrays in enumerate(zip(*controls, writes, strict=True)):
                count = placed.rows if self.part.calls == 1 else 1
                write_controls(
                    Controls(*arrays),
                    place.position + call,
                    count,
                    base,
                    window,
                    0,
                    placed.visible_from,
                    self.part.rows,
                )
        writes[:, 0] = np.arange(place.slot, place.slot + self.part.calls)

    def copy(self, stream: Stream, call: int) -> None:
        """Queue the copy of a call's inputs to where the graph reads them."""
        size = self.part.layout.bytes
        stream.copy(self.part.graph.uploads, self._address + call * size, size)


class BatchChain:
    """Holds the memory of drafts of one length for one range of places, and queues them.

    Args:
        stream: carries the work.
        places: that the calls take.
        context: tokens that a byte's hash n-grams reach back to, and itself.
        decoder: one call for each byte; ``calls`` is the length of the drafts.
        encoder: as many; None where the decoder has an embedding of its own.
        patcher: one call, on the drafts; None where nobody asks.
        state_bytes: size of a byte state.
        asked_from: first token that the patcher is asked about: 0, the one before the draft, or 1.
    """

    def __init__(
        self,
        stream: Stream,
        places: range,
        context: int,
        decoder: BatchPart,
        encoder: BatchPart | None,
        patcher: BatchPart | None,
        state_bytes: int,
        asked_from: int = 0,
    ) -> None:
        self._stream, self.places, self._context, self._state_bytes = stream, places, context, state_bytes
        self.count, self._asked_from = decoder.calls, asked_from
        together, self._width = len(places), context + self.count
        # The tokens before the drafts and the drafts, then the probability of each byte.
        self._found_bytes = together * (ID_BYTES * self._width + _FLOAT_BYTES * self.count)
        parts = [part for part in (decoder, encoder, patcher) if part is not None]
        size = aligned(self._found_bytes) + sum(part.calls * part.layout.bytes for part in parts)
        self._device, self._pinned = DeviceMemory(stream.cuda, size), PinnedMemory(stream.cuda, size)
        self._pinned.bytes[:] = 0
        self._tokens = self._cut(self._pinned)[0]
        self._found = PinnedMemory(stream.cuda, self._found_bytes)
        inputs, first = [], aligned(self._found_bytes)
        for part in parts:
            end = first + part.calls * part.layout.bytes
            inputs.append(_Inputs(part, self._pinned.bytes[first:end], self._device.address + first))
            first = end
        self.decoder = inputs[0]
        self.encoder = inputs[1] if encoder is not None else None
        self.patcher = inputs[-1] if patcher is not None else None
        self._placed: Mapping[BatchGraph, Mapping[int, PlacedRows]] = {}
        self._drafting: tuple[int, ...] = ()
        self.rows: Views = {}
        """Results of the decoder's only call, where the drafts have one byte; views."""
        self._entropies: Floats = np.empty((0, 0), dtype=np.float32)
        self._work = RecordedWork(stream, [part.graph for part in parts])

    def _cut(self, memory: PinnedMemory) -> tuple[Ids, Floats]:
        """Return views of tokens, [sequences, context + count], and probabilities, [sequences, count]."""
        apart = ID_BYTES * len(self.places) * self._width
        tokens = memory.bytes[:apart].view(np.int64).reshape(len(self.places), self._width)
        probabilities = memory.bytes[apart : self._found_bytes].view(np.float32)
        return tokens, probabilities.reshape(len(self.places), self.count)

    def settle(self) -> None:
        """Wait for drafts that were interrupted before they were waited for: they still use this memory."""
        self._work.settle()

    def write(
        self, ids: Mapping[int, Ids], latents: Mapping[int, int], placed: Mapping[BatchGraph, Mapping[int, PlacedRows]]
    ) -> None:
        """Write the inputs of drafts.

        Args:
            ids: int64 [context] by place, the tokens before each draft; places that are not in it take no part.
            latents: index of the latent that the rows read, among those that calls have bound, by place: of all places.
            placed: where the rows go, by graph and place; all places of the range.
        """
        self.settle()
        self._placed, self._drafting = placed, tuple(ids)
        self._tokens[:] = 0
        for place, tokens in ids.items():
            self._tokens[place - self.places[0], : self._context] = tokens
        index = self.decoder.arrays["latent_index"]
        for place, latent in latents.items():
            index[:, place - self.places[0]] = latent
        for inputs in (self.decoder, self.encoder, self.patcher):
            if inputs is not None:
                for place, rows in placed[inputs.part.graph].items():
                    inputs.write(place - self.places[0], rows)
        if self.encoder is not None:
            self._write_pool(self.encoder)

    def _write_pool(self, encoder: _Inputs) -> None:
        """Write where the encoder's states go. No patch ends in a draft: what each call pools is not read."""
        for place, rows in self._placed[encoder.part.graph].items():
            at, slots = place - self.places[0], np.arange(rows.place.pool_slot, rows.place.pool_slot + self.count)
            encoder.arrays["pool_index"][:, at] = slots
            encoder.arrays["patch_start"][:, at] = slots[:, None]
            encoder.arrays["patch_end"][:, at] = slots[:, None] + 1

    def queue(self) -> None:
        """Queue the drafts that were written."""
        self._work.queue(self._queue)

    def results(self, place: int) -> tuple[Ids, Floats, Floats | None]:
        """Return copies of a sequence's tokens and probabilities, and a view of the patcher's entropies; wait first."""
        at, (tokens, probabilities) = place - self.places[0], self._cut(self._found)
        entropies = self._entropies[at] if self.patcher is not None else None
        return tokens[at, self._context :].copy(), probabilities[at].copy(), entropies

    def _token(self, index: int) -> int:
        """Return the device address of a token of the first sequence; those before the drafts come first."""
        return self._device.address + ID_BYTES * index

    def _queue(self, run: RunGraph) -> None:
        """Queue all copies and calls; ``run`` queues the current class of a graph."""
        stream = self._stream
        stream.upload(self._device.address, self._pinned.address, self._pinned.size)
        for step in range(self.count):
            if self.encoder is not None:
                self._queue_encoder(self.encoder, step, run)
            self._queue_decoder(step, run)
        if self.count == 1:
            self.rows = self.decoder.part.graph.fetch()
        stream.download(self._found.address, self._device.address, self._found_bytes)
        if self.patcher is not None:
            self._queue_patcher(self.patcher, run)

    def _copy_tokens(self, graph: BatchGraph, pitch: int, first: int, count: int) -> None:
        """Queue the copy of tokens of every sequence, from index ``first`` on, to a graph's ids ``pitch`` apart."""
        self._stream.copy_rows(
            graph.upload_address("ids"),
            ID_BYTES * pitch,
            self._token(first),
            ID_BYTES * self._width,
            ID_BYTES * count,
            len(self.places),
        )

    def _append(self, part: BatchPart, step: int) -> None:
        places = {place: self._placed[part.graph][place].place for place in self._drafting}
        slots = {place: at.slot + step for place, at in places.items()}
        part.graph.append_rows(
            part.rows, self.places, slots, {place: at.pool_slot + step for place, at in places.items()}
        )

    def _queue_encoder(self, inputs: _Inputs, step: int, run: RunGraph) -> None:
        part, stream = inputs.part, self._stream
        inputs.copy(stream, step)
        self._copy_tokens(part.graph, self._context - 1 + part.rows, step, self._context)
        run(part.graph)
        self._append(part, step)
        size = len(self.places) * part.rows * self._state_bytes
        stream.copy(self.decoder.part.graph.links["states"].address, part.graph.links["states"].address, size)

    def _queue_decoder(self, step: int, run: RunGraph) -> None:
        part, stream, together = self.decoder.part, self._stream, len(self.places)
        self.decoder.copy(stream, step)
        if self.encoder is None and "ids" in self.decoder.arrays:
            self._copy_tokens(part.graph, part.rows, self._context - 1 + step, 1)
        run(part.graph)
        self._append(part, step)
        best, probability = part.graph.result_address("best"), part.graph.result_address("probability")
        width, rows = ID_BYTES * self._width, part.rows
        stream.copy_rows(self._token(self._context + step), width, best, ID_BYTES * rows, ID_BYTES, together)
        target = self._device.address + together * width + _FLOAT_BYTES * step
        apart = _FLOAT_BYTES * self.count
        stream.copy_rows(target, apart, probability, _FLOAT_BYTES * rows, _FLOAT_BYTES, together)

    def _queue_patcher(self, inputs: _Inputs, run: RunGraph) -> None:
        part, first = inputs.part, self._context - 1 + self._asked_from
        inputs.copy(self._stream, 0)
        self._copy_tokens(part.graph, part.rows, first, self.count + 1 - self._asked_from)
        run(part.graph)
        self._append(part, 0)
        self._entropies = part.graph.fetch()["entropy"]
