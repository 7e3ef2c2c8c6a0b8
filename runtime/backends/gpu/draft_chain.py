"""Chains the calls of a draft on the device: each step reads there what the step before chose.

A draft repeats the same few calls: for each byte one of the decoder, after one of the encoder where the decoder reads
byte states, and in the end one of the patcher. The host writes the inputs of all of them into one block, which it sends
once; every call then copies its part to where its graph reads it. So nothing but the contents of that block differs
from draft to draft, and all of the work can be recorded as one CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.controls import Controls, write_controls
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, aligned
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.recorded_work import RecordedWork, RunGraph
from fastblt.runtime.backends.gpu.tensor_table import Block
from fastblt.runtime.backends.protocol import Floats, Ids

#: Size of a token on the device, int64.
ID_BYTES = 8


class Part(NamedTuple):
    """Describes the calls of one graph in a draft."""

    graph: DeviceGraph
    layout: Block
    """Of what a call uploads."""
    calls: int
    rows: int
    """Of each call, padding included."""


class Place(NamedTuple):
    """Holds where the first row of a part's calls goes."""

    position: int
    slot: int
    """In the caches."""
    pool_slot: int = 0


class StepInputs:
    """Holds what the host writes for all calls of one graph in a draft.

    Args:
        part: the calls.
        memory: page-locked, for as many blocks as there are calls, uint8.
        address: on the device, where ``memory`` is sent to.
    """

    def __init__(self, part: Part, memory: NDArray[np.uint8], address: int) -> None:
        self.part, self._address = part, address
        blocks = memory.reshape(part.calls, part.layout.bytes)
        self.arrays = {
            name: blocks[:, f.offset : f.offset + f.bytes].view(f.dtype).reshape(part.calls, *f.shape)
            for name, f in part.layout.fields.items()
        }
        """By tensor, [calls, *shape]."""
        positions, start, end = (self.arrays[name][:, 0] for name in ("positions", "visible_start", "visible_end"))
        self._write_index = self.arrays["write_index"][:, 0]
        if part.rows == 1:
            # Calls of one row are placed all at once, as one call of as many rows would be.
            first = self.arrays["write_index"][0]
            self._controls = [Controls(positions[:, 0], start[:, 0], end[:, 0], first)]
        else:
            each = zip(positions, start, end, self.arrays["write_index"], strict=True)
            self._controls = [Controls(*arrays) for arrays in each]

    def write(self, place: Place, rows: int, visible_from: int | None) -> None:
        """Write what places ``rows`` rows: one of each call, or those of the only call, without padding."""
        position, base = place.position, place.position - place.slot
        each = rows if len(self._controls) == 1 else 1
        for call, controls in enumerate(self._controls):
            padded = len(controls.positions)
            write_controls(controls, position + call, each, base, self.part.graph.window, 0, visible_from, padded)
        self._write_index[:] = np.arange(place.slot, place.slot + self.part.calls)

    def copy(self, stream: Stream, call: int) -> None:
        """Queue the copy of a call's inputs to where the graph reads them."""
        size = self.part.layout.bytes
        stream.copy(self.part.graph.uploads, self._address + call * size, size)


class DraftChain:
    """Holds the memory of drafts of one length, and queues them.

    Args:
        stream: carries the work.
        history: tokens before the first that a hash n-gram reaches back to.
        decoder: one call for each byte; ``calls`` is the length of the draft.
        encoder: as many; None where the decoder has an embedding of its own.
        patcher: one call, on the token before the draft and on the draft; None where nobody asks.
        state_bytes: size of a byte state.
    """

    def __init__(
        self,
        stream: Stream,
        history: int,
        decoder: Part,
        encoder: Part | None,
        patcher: Part | None,
        state_bytes: int,
    ) -> None:
        self._stream, self._state_bytes = stream, state_bytes
        self.count, self._context = decoder.calls, history + 1
        # The tokens before the draft, the draft, and a place of the same size for the probability of each byte.
        self._words = aligned(ID_BYTES * (self._context + 2 * self.count))
        parts = [part for part in (decoder, encoder, patcher) if part is not None]
        size = self._words + sum(part.calls * part.layout.bytes for part in parts)
        self._device, self._pinned = DeviceMemory(stream.cuda, size), PinnedMemory(stream.cuda, size)
        self._pinned.bytes[:] = 0
        self._found = PinnedMemory(stream.cuda, ID_BYTES * 2 * self.count)
        self._tokens = self._pinned.bytes[: ID_BYTES * self._context].view(np.int64)
        inputs, first = [], self._words
        for part in parts:
            end = first + part.calls * part.layout.bytes
            inputs.append(StepInputs(part, self._pinned.bytes[first:end], self._device.address + first))
            first = end
        self._decoder = inputs[0]
        self._encoder = inputs[1] if encoder is not None else None
        self._patcher = inputs[-1] if patcher is not None else None
        self._places: dict[str, Place] = {}
        self._entropies: Floats | None = None
        self._work = RecordedWork(stream, [part.graph for part in parts])

    def settle(self) -> None:
        """Wait for a draft that was interrupted before it was waited for: it still uses this memory."""
        self._work.settle()

    def queue(self) -> None:
        """Queue the draft that was written."""
        self._work.queue(self._queue)

    def write(
        self,
        ids: Ids,
        latent_index: int,
        decoder: Place,
        encoder: Place | None,
        patcher: Place | None,
        visible_from: int | None,
    ) -> None:
        """Write the inputs of a draft.

        Args:
            ids: int64 [history + 1], the tokens before the draft.
            latent_index: of the latent that every row reads.
            decoder: where its rows go.
            encoder: likewise, where there is one.
            patcher: likewise, where it is asked.
            visible_from: first position that rows may see; None: 0.
        """
        self.settle()
        self._tokens[:] = ids
        self._decoder.write(decoder, self.count, visible_from)
        self._decoder.arrays["latent_index"][:] = latent_index
        self._places = {"decoder": decoder}
        if self._encoder is not None and encoder is not None:
            self._encoder.write(encoder, self.count, visible_from)
            self._write_pool(self._encoder, encoder.pool_slot)
            self._places["encoder"] = encoder
        if self._patcher is not None and patcher is not None:
            self._patcher.write(patcher, self.count + 1, visible_from)
            self._places["patcher"] = patcher

    def _write_pool(self, encoder: StepInputs, pool_slot: int) -> None:
        """Write where the encoder's states go. No patch ends in a draft: what each call pools is not read."""
        slots = np.arange(pool_slot, pool_slot + self.count)
        encoder.arrays["pool_index"][:, 0] = slots
        encoder.arrays["patch_start"][:, 0] = slots[:, None]
        encoder.arrays["patch_end"][:, 0] = slots[:, None] + 1

    def results(self) -> tuple[Ids, Floats, Floats | None]:
        """Return copies of the tokens and probabilities, and a view of the patcher's entropies; wait first."""
        tokens = self._found.bytes.view(np.int64)[: self.count].copy()
        probabilities = self._found.bytes.view(np.float32)[2 * self.count :: 2].copy()
        return tokens, probabilities, self._entropies

    def _token(self, index: int) -> int:
        """Return the device address of a token; those before the draft come first."""
        return self._device.address + ID_BYTES * index

    def _queue(self, run: RunGraph) -> None:
        """Queue all copies and calls; ``run`` queues the current class of a graph."""
        stream = self._stream
        stream.upload(self._device.address, self._pinned.address, self._pinned.size)
        for step in range(self.count):
            if self._encoder is not None:
                self._queue_encoder(self._encoder, step, run)
            self._queue_decoder(step, run)
        stream.download(self._found.address, self._token(self._context), self._found.size)
        if self._patcher is not None:
            self._queue_patcher(self._patcher, run)

    def _queue_encoder(self, inputs: StepInputs, step: int, run: RunGraph) -> None:
        graph, place = inputs.part.graph, self._places["encoder"]
        inputs.copy(self._stream, step)
        self._stream.copy(graph.upload_address("ids"), self._token(step), ID_BYTES * self._context)
        run(graph)
        graph.append_rows(inputs.part.rows, place.slot + step, place.pool_slot + step)
        states = self._decoder.part.graph.links["states"].address
        self._stream.copy(states, graph.links["states"].address, self._state_bytes)

    def _queue_decoder(self, step: int, run: RunGraph) -> None:
        graph, stream = self._decoder.part.graph, self._stream
        self._decoder.copy(stream, step)
        if self._encoder is None:
            stream.copy(graph.upload_address("ids"), self._token(self._context - 1 + step), ID_BYTES)
        run(graph)
        graph.append_rows(self._decoder.part.rows, self._places["decoder"].slot + step)
        best, probability = graph.result_address("best"), graph.result_address("probability")
        chosen, apart = self._token(self._context + step), ID_BYTES * self.count
        if probability >= best + ID_BYTES:
            stream.copy_rows(chosen, apart, best, probability - best, ID_BYTES, 2)
        else:
            stream.copy(chosen, best, ID_BYTES)
            stream.copy(chosen + apart, probability, ID_BYTES // 2)

    def _queue_patcher(self, inputs: StepInputs, run: RunGraph) -> None:
        graph = inputs.part.graph
        inputs.copy(self._stream, 0)
        read = self._token(self._context - 1), ID_BYTES * (self.count + 1)
        self._stream.copy(graph.upload_address("ids"), *read)
        run(graph)
        graph.append_rows(inputs.part.rows, self._places["patcher"].slot)
        self._entropies = graph.fetch()["entropy"][0, : self.count + 1]
