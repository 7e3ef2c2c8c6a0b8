"""Drafts bytes one after the other with the decoder, all from one latent: on the device alone, or step by step."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.decoder_calls import DecoderCalls, decoder_rows
from fastblt.runtime.backends.gpu.draft_chain import DraftChain, Part, Place
from fastblt.runtime.backends.gpu.encoder_calls import EncoderCalls
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.patcher_calls import LookAhead
from fastblt.runtime.backends.protocol import DRAFT_SLACK, Drafted, Ids, Pick

#: Most chains that are kept: callers choose the lengths, and a recorded draft has thousands of nodes.
_MOST_CHAINS = 8


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
        """Implement `BackendSequence.draft`; the encoder's time is that of queuing it, the wait is the decoder's."""
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
        encoder: its calls, where the decoder reads byte states; its tables must be in the graph. None elsewhere.
        decoder: its calls.
        look_ahead: asks the patcher about the draft.
        stream: carries the work.
        history: tokens before a byte that its hash n-grams reach back to.
    """

    #: Longest draft.
    LONGEST = DRAFT_SLACK

    def __init__(
        self, encoder: EncoderCalls | None, decoder: DecoderCalls, look_ahead: LookAhead, stream: Stream, history: int
    ) -> None:
        self._encoder, self._decoder, self._look_ahead = encoder, decoder, look_ahead
        self._stream, self._history = stream, history
        self._chains: dict[tuple[int, bool], DraftChain] = {}
        """By the draft's length and whether the patcher is asked; the one that was used last comes last."""

    def warm_up(self, count: int) -> None:
        """Draft ``count`` bytes after zeros, so that everything is bound, and recorded as far as it can be.

        What that leaves in the caches is overwritten by whatever is read next.
        """
        nothing = np.zeros(self._history + 1, dtype=np.int64)
        for _ in range(2):  # the second one is recorded
            self.draft(0, nothing, 0, count, None)

    def draft(self, position: int, ids: Ids, latent: int, count: int, visible_from: int | None) -> Drafted:
        """Draft ``count`` bytes after ``ids``, int64 [history + 1]; see `BackendSequence.draft`."""
        self._look_ahead.forget()
        # Room for the whole draft, so that nothing has to move in the middle of it.
        rows = count - 1 + self._decoder.graph.padded(1)
        decoder = _place(self._decoder.graph, position, rows, count)
        encoder = None if self._encoder is None else self._encoder.place_draft(position, rows)
        asked = self._look_ahead.graph_for(position, count + 1)
        patcher = None if asked is None else _place(asked, position, asked.padded(count + 1), count + 1)
        chain = self._chain(decoder, encoder, patcher, asked, count)
        chain.write(ids, self._decoder.place_latent(latent), decoder, encoder, patcher, visible_from)
        chain.queue()
        self._stream.synchronize()
        tokens, probabilities, entropies = chain.results()
        if entropies is not None:
            self._look_ahead.keep(position, np.concatenate([ids[-1:], tokens]), visible_from, entropies)
        return Drafted(tokens, probabilities)

    def _chain(
        self, decoder: Place, encoder: Place | None, patcher: Place | None, asked: DeviceGraph | None, count: int
    ) -> DraftChain:
        """Choose the shape classes of a draft's calls, and return the chain that queues them."""

        def part(graph: DeviceGraph, place: Place, calls: int, rows: int = 1) -> Part:
            rows = graph.padded(rows)
            used = calls - 1 + rows
            chosen = graph.choose(rows, place.slot + used, place.pool_slot + used)
            return Part(graph, chosen.upload, calls, rows)

        decoding = part(self._decoder.graph, decoder, count)
        encoding = part(self._encoder.graph, encoder, count) if self._encoder and encoder else None
        asking = part(asked, patcher, 1, count + 1) if asked and patcher else None
        key = count, asking is not None
        chain = self._chains.pop(key, None)
        if chain is None:
            size = self._decoder.state_bytes
            chain = DraftChain(self._stream, self._history, decoding, encoding, asking, size)
        self._chains[key] = chain
        if len(self._chains) > _MOST_CHAINS:
            self._chains.pop(next(iter(self._chains))).settle()
        return chain


def _place(graph: DeviceGraph, position: int, rows: int, count: int) -> Place:
    """Make room in a graph's caches for ``rows`` rows, ``count`` of them without padding."""
    slot = graph.make_room(position, rows)
    graph.caches.end = position + count
    return Place(position, slot)
