"""Drafts bytes one after the other with the decoder, all from one latent: on the device alone, or step by step."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, aligned
from fastblt.runtime.backends.gpu.decoder_calls import DecoderCalls, decoder_rows
from fastblt.runtime.backends.gpu.encoder_calls import EncoderCalls
from fastblt.runtime.backends.gpu.patcher_calls import ID_BYTES, LookAhead
from fastblt.runtime.backends.protocol import DRAFT_SLACK, Drafted, Ids, Pick


class StepDrafter:
    """Drafts with a wait after each byte: where the caller picks bytes, or the encoder has to read them first.

    Args:
        encoder: its calls.
        decoder: its calls.
        stream: carries the work.
    """

    def __init__(self, encoder: EncoderCalls, decoder: DecoderCalls, stream: Stream) -> None:
        self._encoder, self._decoder, self._stream = encoder, decoder, stream

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None, visible_from: int | None
    ) -> Drafted:
        """Implement `Backend.draft`; the encoder's time is that of queuing it, the wait counts as the decoder's."""
        tokens, probabilities, context = [], [], ids.copy()
        index, more, encoder_seconds = np.array([latent], dtype=np.int64), True, 0.0
        for step in range(count):
            if self._decoder.reads_states:
                began = perf_counter()
                self._encoder.encode_row(position + step, context, visible_from)
                encoder_seconds += perf_counter() - began
            self._decoder.queue(position + step, context[-1:], index, visible_from=visible_from)
            results = self._decoder.graph.fetch()
            self._stream.synchronize()
            row = decoder_rows(results, 1)
            token = int(row.best[0])
            probabilities.append(float(row.probability[0]))
            if pick is not None:
                token, more = pick(row)
            tokens.append(token)
            context[:-1] = context[1:]
            context[-1] = token
            if not more:
                break
        found = np.array(tokens, dtype=np.int64)
        return Drafted(found, np.array(probabilities, dtype=np.float32), encoder_seconds)


class DeviceDrafter:
    """Drafts the most likely bytes with one wait: each step reads on the device what the step before chose.

    Args:
        decoder: its calls; it must have an embedding of its own.
        look_ahead: asks the patcher about the draft.
        stream: carries the work.
    """

    #: Longest draft.
    LONGEST = DRAFT_SLACK

    def __init__(self, decoder: DecoderCalls, look_ahead: LookAhead, stream: Stream) -> None:
        self._decoder, self._look_ahead, self._stream = decoder, look_ahead, stream
        self._tokens = DeviceMemory(stream.cuda, ID_BYTES * (self.LONGEST + 1))
        """The token before the draft, then the draft."""
        self._results: tuple[DeviceMemory, PinnedMemory] | None = None

    def draft(self, position: int, token: int, latent: int, count: int, visible_from: int | None) -> Drafted:
        """Draft ``count`` bytes after a token; see `Backend.draft`."""
        self._look_ahead.forget()
        for step in range(count):
            self._queue_step(position, step, token, latent, visible_from)
        assert self._results is not None, "a draft has a step"
        graph, (kept, pinned) = self._decoder.graph, self._results
        size = count * graph.result_bytes
        self._stream.download(pinned.address, kept.address, size)
        entropies = None
        if visible_from is None:
            entropies = self._look_ahead.queue(position, self._tokens.address, count + 1)
        self._stream.synchronize()
        steps = pinned.bytes[:size].reshape(count, -1)
        rows = [decoder_rows(graph.result_views(step), 1) for step in steps]
        tokens = np.array([row.best[0] for row in rows], dtype=np.int64)
        if entropies is not None:
            read = np.concatenate([np.array([token], dtype=np.int64), tokens])
            self._look_ahead.keep(position, read, entropies)
        return Drafted(tokens, np.array([row.probability[0] for row in rows], dtype=np.float32))

    def _queue_step(self, position: int, step: int, token: int, latent: int, visible_from: int | None) -> None:
        """Queue one row of the decoder; its most likely byte is the token of the next step."""
        graph, stream = self._decoder.graph, self._stream
        call = self._decoder.begin(position + step, np.array([latent], dtype=np.int64), visible_from=visible_from)
        call.arrays["ids"][:] = token
        call.send()
        # The host knows the first token alone; the others are what the step before chose.
        ids, known = graph.upload_address("ids"), self._tokens.address + step * ID_BYTES
        stream.copy(*((ids, known) if step else (known, ids)), ID_BYTES)
        call.launch()
        size = graph.result_bytes
        kept, _ = self._results = self._results or self._allocate_results(size)
        stream.copy(known + ID_BYTES, graph.result_address("best"), ID_BYTES)
        stream.copy(kept.address + step * size, graph.results, size)

    def _allocate_results(self, step_bytes: int) -> tuple[DeviceMemory, PinnedMemory]:
        """Allocate memory for the results of every step, on the device and on the host."""
        size = self.LONGEST * aligned(step_bytes)
        return DeviceMemory(self._stream.cuda, size), PinnedMemory(self._stream.cuda, size)
