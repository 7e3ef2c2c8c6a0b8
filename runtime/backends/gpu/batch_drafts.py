"""Drafts bytes of several sequences: on the device alone, or step by step where the host takes part.

A row that each sequence decodes alone is treated as a draft of one byte, with the patcher behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from fastblt.runtime.backends.batching import SHARED_ROWS, DecoderCall, DraftCall
from fastblt.runtime.backends.gpu.batch_chain import BatchChain, BatchPart, PlacedRows
from fastblt.runtime.backends.gpu.batch_graph import BatchGraph, Rows
from fastblt.runtime.backends.gpu.batch_parts import BatchDecoder, BatchEncoder, rows_of
from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.draft_chain import Place
from fastblt.runtime.backends.gpu.slot import Slot
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows, Drafted, Ids

#: Most chains that are kept, see `fastblt.runtime.backends.gpu.drafting`.
_MOST_CHAINS = 16


class Outcome(NamedTuple):
    """Holds what came of one sequence's draft, and its share of what it cost."""

    drafted: Drafted
    calls: float
    """Steps, each divided by the sequences that it served."""
    moved_bytes: float
    """Its share of the weights, and its caches, that the steps read."""
    seconds: float | None
    """Its share of the steps' seconds; None: that part of the call's which ``calls`` is of all steps."""
    error: Exception | None = None
    """What its pick has raised."""


class BatchDrafter:
    """Drafts for several sequences.

    Args:
        encoder: its calls, of several slots.
        decoder: likewise.
        patcher: its graph, of several slots; None where there is none.
        slots: by place.
        stream: carries the work.
        history: tokens before a byte that its hash n-grams reach back to.
        on_device: whether a draft needs nothing that the host looks up.
    """

    def __init__(
        self,
        encoder: BatchEncoder,
        decoder: BatchDecoder,
        patcher: BatchGraph | None,
        slots: Sequence[Slot],
        stream: Stream,
        history: int,
        *,
        on_device: bool,
    ) -> None:
        self._encoder, self._decoder, self._patcher = encoder, decoder, patcher
        self._slots, self._stream, self._context, self._on_device = slots, stream, history + 1, on_device
        self._chains: dict[tuple[range, int, bool, bool], BatchChain] = {}
        """By places, length, and whether encoder and patcher are in it; the one that was used last comes last."""

    def draft(self, calls: Mapping[int, DraftCall]) -> dict[int, Outcome]:
        """Return the drafts that `BackendSequence.draft` would make, by place."""
        longest = max(call.most for call in calls.values())
        if any(call.pick is not None for call in calls.values()) or not self._on_device or longest > DRAFT_SLACK:
            return self._step(calls)
        encoder = self._encoder if self._decoder.reads_states else None
        rows = {place: Rows(call.position, call.most, call.visible_from or None) for place, call in calls.items()}
        latents = {place: call.latent for place, call in calls.items()}
        chain = self._run(rows, {place: call.ids for place, call in calls.items()}, latents, longest, encoder, 0)
        found, together = {}, len(calls)
        drafting = [sum(call.most > step for call in calls.values()) for step in range(longest)]
        for place, call in calls.items():
            tokens, probabilities, entropies = chain.results(place)
            drafted = Drafted(tokens[: call.most], probabilities[: call.most])
            # Its last steps are there for those whose drafts are longer.
            shared = drafting[: call.most]
            found[place] = Outcome(drafted, sum(1 / n for n in shared), sum(map(self._moved_bytes, shared)), None)
            if entropies is not None:
                asked, seen = np.concatenate([call.ids[-1:], drafted.tokens]), call.visible_from or None
                self._slots[place].look_ahead.keep(call.position, asked, seen, entropies[: call.most + 1], together)
        return found

    def _moved_bytes(self, together: int) -> float:
        """Return what a step reads for each of ``together`` sequences."""
        encoder = self._encoder.graph.moved_bytes(together) if self._decoder.reads_states else 0.0
        return self._decoder.graph.moved_bytes(together) + encoder

    def make_room(self, place: int, call: DraftCall) -> None:
        """Make room for a draft and the row behind it.

        Raises:
            CapacityError: the caches, or the encoder's pool, have none.
        """
        decoder, rows = self._decoder.graph, call.most + self._decoder.graph.padded(1)
        if self._decoder.reads_states:
            # Each step asks the pool for SHARED_ROWS, the last one too.
            pool_rows = max(rows, call.most - 1 + SHARED_ROWS)
            self._encoder.place_pool(range(place, place + 1), {place: Rows(call.position, 0)}, pool_rows)
        decoder.make_room(place, call.position, 0, rows)

    def single_rows(self, calls: Mapping[int, DecoderCall]) -> dict[int, DecoderRows]:
        """Decode a row of each sequence, and ask the patcher about the byte that it finds most likely."""
        rows, ids = {}, {}
        seen = {p: None if call.visible_from is None else int(call.visible_from[0]) for p, call in calls.items()}
        for place, call in calls.items():
            rows[place] = Rows(call.position, 1, seen[place])
            ids[place] = np.zeros(self._context, dtype=np.int64)
            ids[place][-1] = call.ids[0]
        latents = {place: int(call.latents[0]) for place, call in calls.items()}
        chain = self._run(rows, ids, latents, 1, None, 1)
        found = {}
        for place, one in rows.items():
            found[place] = rows_of(chain.rows, place - chain.places[0], 1)
            *_, entropies = chain.results(place)
            if entropies is not None:
                look_ahead = self._slots[place].look_ahead
                look_ahead.keep(one.position + 1, found[place].best, seen[place], entropies[:1], len(calls))
        return found

    def _run(
        self,
        rows: Mapping[int, Rows],
        ids: Mapping[int, Ids],
        latents: Mapping[int, int],
        count: int,
        encoder: BatchEncoder | None,
        asked_from: int,
    ) -> BatchChain:
        """Run a chain of ``count`` bytes and wait; ``rows`` are those of the decoder, by place."""
        for place in rows:
            self._slots[place].look_ahead.forget()
        decoder, patcher, last = self._decoder.graph, self._patcher, count + 1 - asked_from
        if patcher is not None and patcher.padded(last) > patcher.most_rows:
            patcher = None
        places, asked = decoder.range_of(rows), {}
        for place, one in rows.items():
            asked[place] = Rows(one.position + asked_from, one.number + 1 - asked_from, one.visible_from)
            if self._slots[place].look_ahead.graph_for(one.position + asked_from, last) is None:
                patcher = None
        # Room for the whole draft, so that nothing has to move in the middle of it.
        used = count - 1 + decoder.padded(1)
        placed = {decoder: _place(decoder, places, rows, used, {})}
        parts: list[BatchPart | None] = [_part(decoder, places, count, decoder.padded(1)), None, None]
        if encoder is not None:
            graph = encoder.graph
            placed[graph] = _place(graph, places, rows, used, encoder.place_pool(places, rows, used))
            parts[1] = _part(graph, places, count, graph.padded(1))
        if patcher is not None:
            padded = patcher.padded(last)
            placed[patcher] = _place(patcher, places, asked, padded, {})
            parts[2] = _part(patcher, places, 1, padded)
        if encoder is None and self._decoder.reads_states:
            for place, one in rows.items():
                at = (place - places[0]) * decoder.padded(1)
                self._slots[place].rows["states"].copy_to(decoder, one.position, 1, at)
        chain = self._chain(places, count, parts, asked_from)
        store = {place: self._decoder.first_latent(place) for place in places}
        for place, latent in latents.items():
            store[place] = int(self._decoder.latent_index(place, np.array([latent]))[0])
        chain.write(ids, store, placed)
        chain.queue()
        self._stream.synchronize()
        return chain

    def _chain(self, places: range, count: int, parts: Sequence[BatchPart | None], asked_from: int) -> BatchChain:
        decoder, encoder, patcher = parts
        assert decoder is not None, "every draft has a decoder"
        key = (places, count, encoder is not None, patcher is not None and asked_from == 0)
        chain = self._chains.pop(key, None)
        size = self._slots[0].rows["states"].row_bytes if encoder is not None else 0
        if chain is None or (chain.patcher is None) != (patcher is None):
            chain = BatchChain(self._stream, places, self._context, decoder, encoder, patcher, size, asked_from)
        self._chains[key] = chain
        if len(self._chains) > _MOST_CHAINS:
            self._chains.pop(next(iter(self._chains))).settle()
        return chain

    def _step(self, calls: Mapping[int, DraftCall]) -> dict[int, Outcome]:
        """Draft with a wait after each byte; the encoder's time is that of queuing it, the wait is the decoder's."""
        drafts = {place: _Draft(call) for place, call in calls.items()}
        while active := {place: draft for place, draft in drafts.items() if draft.more}:
            rows = {place: Rows(one.position, 1, one.call.visible_from or None) for place, one in active.items()}
            began = perf_counter()
            if self._decoder.reads_states:
                self._encoder.encode_row(rows, {place: draft.context for place, draft in active.items()})
            encoded, moved = perf_counter() - began, self._moved_bytes(len(active))
            latents = {place: np.array([draft.call.latent]) for place, draft in active.items()}
            found = self._decoder.decode(rows, {place: draft.context[-1:] for place, draft in active.items()}, latents)
            seconds = perf_counter() - began
            for place, row in found.items():
                draft = drafts[place]
                draft.calls += 1 / len(active)
                draft.moved += moved
                draft.seconds += seconds / len(active)
                draft.encoder_seconds += encoded / len(active)
                draft.take(row)
        return {place: draft.outcome() for place, draft in drafts.items()}


class _Draft:
    """Holds the draft of one sequence as it grows step by step."""

    def __init__(self, call: DraftCall) -> None:
        self.call, self.context, self.more = call, call.ids.copy(), call.most > 0
        self.calls = self.moved = self.seconds = self.encoder_seconds = 0.0
        self._tokens: list[int] = []
        self._probabilities: list[float] = []
        self._error: Exception | None = None

    @property
    def position(self) -> int:
        """Return that of the next row."""
        return self.call.position + len(self._tokens)

    def take(self, row: DecoderRows) -> None:
        """Choose the token after a row."""
        token, more = int(row.best[0]), True
        if self.call.pick is not None:
            try:
                token, more = self.call.pick(row)
            except Exception as error:
                self._error, self.more = error, False
                return
        self._tokens.append(token)
        self._probabilities.append(float(row.probability[0]))
        self.context[:-1] = self.context[1:]
        self.context[-1] = token
        self.more = more and len(self._tokens) < self.call.most

    def outcome(self) -> Outcome:
        """Return what came of it."""
        tokens, probabilities = np.array(self._tokens, np.int64), np.array(self._probabilities, np.float32)
        drafted = Drafted(tokens, probabilities, self.encoder_seconds)
        return Outcome(drafted, self.calls, self.moved, self.seconds, self._error)


def _place(
    graph: BatchGraph, places: range, rows: Mapping[int, Rows], used: int, pool_slots: Mapping[int, int]
) -> dict[int, PlacedRows]:
    """Make room for ``used`` rows of every place, and return where those go."""
    found = {}
    for place in places:
        one = rows.get(place)
        position, slot = graph.make_room(place, one and one.position, one.number if one else 0, used)
        seen = one.visible_from if one is not None else None
        assert seen is None or isinstance(seen, int)
        count = one.number if one is not None else 1
        found[place] = PlacedRows(Place(position, slot, pool_slots.get(place, 0)), count, seen)
    return found


def _part(graph: BatchGraph, places: range, calls: int, rows: int) -> BatchPart:
    return BatchPart(graph, graph.choose(places, rows).upload, calls, rows)
