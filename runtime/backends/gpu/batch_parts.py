"""Runs the calls of each part for several slots at once; what they leave in a slot is what its own calls would leave.

Calls are by place: the index of the slot in the memory that all slots share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastblt.runtime.backends.batching import DecoderCall, EncoderCall, GlobalCall, PatcherCall
from fastblt.runtime.backends.gpu.batch_graph import BatchGraph, GroupCall, Padding, Rows
from fastblt.runtime.backends.gpu.cuda import Stream, Views
from fastblt.runtime.backends.gpu.slot import Slot
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import DecoderRows, Floats, Ids


class BatchPatcher:
    """Runs the patcher.

    Args:
        graph: the patcher's.
        stream: carries the work.
    """

    def __init__(self, graph: BatchGraph, stream: Stream) -> None:
        self.graph, self._stream = graph, stream

    def run(self, calls: Mapping[int, PatcherCall]) -> dict[int, Floats]:
        """Return the entropies that each call asks for, as views."""
        rows = {place: Rows(call.position, len(call.ids), call.visible_from) for place, call in calls.items()}
        group = GroupCall(self.graph, rows)
        group.write("ids", {place: call.ids for place, call in calls.items()})
        group.run()
        entropies = self.graph.fetch()["entropy"]
        self._stream.synchronize()
        return {place: entropies[group.index(place), : one.number] for place, one in rows.items()}

    def run_padding(self, places: range, rows: int) -> None:
        """Queue a call of which nobody reads anything."""
        group = GroupCall(self.graph, {}, padding=(places, rows))
        group.write("ids", {})
        group.run()


class BatchEncoder:
    """Runs the encoder.

    Args:
        graph: the encoder's.
        slots: by place.
        history: tokens before the first row that its hash n-grams reach back to.
        tables: embedding tables on the host; None where they are in the graph.
    """

    def __init__(self, graph: BatchGraph, slots: Sequence[Slot], history: int, tables: HostEmbeddings | None) -> None:
        self.graph, self._slots, self._history, self._tables = graph, slots, history, tables

    def run(self, calls: Mapping[int, EncoderCall]) -> None:
        """Encode rows, and pool the patches that end among them."""
        rows, patches = {}, {}
        for place, call in calls.items():
            count = len(call.ids) - self._history
            rows[place] = Rows(call.position, count, call.visible_from)
            ended = int(np.searchsorted(call.ends, call.position + count, side="right"))
            patches[place] = call.starts[:ended], call.ends[:ended]
            self._slots[place].encoder.open_from = int(call.starts[0])
        group = self._encode(rows, {place: call.ids for place, call in calls.items()}, patches)
        for place, (starts, _) in patches.items():
            if len(starts):
                self._slots[place].rows["patch_embeddings"].copy_from(self.graph, 0, len(starts), group.row(place))

    def encode_row(self, rows: Mapping[int, Rows], ids: Mapping[int, Ids]) -> None:
        """Encode one row of each sequence inside its open patch; ``ids`` are those of `EncoderCalls.encode_row`."""
        self._encode(rows, ids, {})

    def run_padding(self, places: range, rows: int) -> None:
        """Queue a call of which nobody reads anything."""
        self._encode({}, {}, {}, (places, rows))

    def place_pool(self, places: range, rows: Mapping[int, Rows], padded: int) -> dict[int, int]:
        """Make room in the pools of a range of places, and return the slot of the first row of each."""
        found = {}
        for place in places:
            encoder, one = self._slots[place].encoder, rows.get(place)
            position = encoder.graph.caches.end if one is None else one.position
            found[place] = encoder.make_room_in_pool(position, padded)
            if one is not None:
                encoder.pool.end = position + one.number
        return found

    def _encode(
        self,
        rows: Mapping[int, Rows],
        ids: Mapping[int, Ids],
        patches: Mapping[int, tuple[Ids, Ids]],
        padding: Padding | None = None,
    ) -> GroupCall:
        places, padded = padding or self.graph.shape(rows)
        pool_slots = self.place_pool(places, rows, padded)
        group = GroupCall(self.graph, rows, pool_slots, padding)
        self._write_ids(group, rows, ids)
        starts, ends, index = (group.arrays[name] for name in ("patch_start", "patch_end", "pool_index"))
        for at, place in enumerate(places):
            # A patch that pads has a byte too: a mean of nothing would not be a number. Nobody reads it.
            slot = index[at] = pool_slots[place]
            starts[at], ends[at] = slot, slot + 1
            if place in patches:
                first, last = patches[place]
                base = rows[place].position - slot
                starts[at, : len(first)], ends[at, : len(first)] = first - base, last - base
        group.run()
        for place, one in rows.items():
            if "states" in self._slots[place].rows:
                self._slots[place].rows["states"].copy_from(self.graph, one.position, one.number, group.row(place))
        return group

    def _write_ids(self, group: GroupCall, rows: Mapping[int, Rows], ids: Mapping[int, Ids]) -> None:
        """Write the tokens with their history, or the sums of their embeddings on the host."""
        if self._tables is None:
            group.write("ids", ids)
            return
        embedded = group.arrays["embedded"]
        embedded[:] = 0
        for place, one in rows.items():
            self._tables.sum_rows(ids[place], embedded[group.index(place), : one.number])


class BatchGlobal:
    """Runs the global transformer.

    Args:
        graph: the global transformer's.
        slots: by place.
    """

    def __init__(self, graph: BatchGraph, slots: Sequence[Slot]) -> None:
        self.graph, self._slots = graph, slots

    def run(self, calls: Mapping[int, GlobalCall]) -> None:
        """Make latents of the patches that the encoder pooled last."""
        rows = {place: Rows(call.first_patch, call.patches, call.visible_from) for place, call in calls.items()}
        group = GroupCall(self.graph, rows)
        for place, one in rows.items():
            self._slots[place].rows["patch_embeddings"].copy_to(self.graph, 0, one.number, group.row(place))
        group.run()
        for place, one in rows.items():
            self._slots[place].rows["latent_kv"].copy_from(self.graph, one.position, one.number, group.row(place))

    def run_padding(self, places: range, rows: int) -> None:
        """Queue a call of which nobody reads anything."""
        GroupCall(self.graph, {}, padding=(places, rows)).run()


class BatchDecoder:
    """Runs the decoder, or the draft decoder.

    Args:
        graph: its graph.
        slots: by place.
        stream: carries the work.
        reads_states: whether it reads byte states, instead of having an embedding of its own.
    """

    def __init__(self, graph: BatchGraph, slots: Sequence[Slot], stream: Stream, *, reads_states: bool) -> None:
        self.graph, self.reads_states = graph, reads_states
        self._slots, self._stream = slots, stream

    def run(self, calls: Mapping[int, DecoderCall]) -> dict[int, DecoderRows]:
        """Decode rows of each sequence, and return their results, as views."""
        rows = {p: Rows(call.position, len(call.ids), call.visible_from, call.block) for p, call in calls.items()}
        return self.decode(
            rows, {place: call.ids for place, call in calls.items()}, {p: call.latents for p, call in calls.items()}
        )

    def decode(
        self, rows: Mapping[int, Rows], ids: Mapping[int, Ids], latents: Mapping[int, Ids]
    ) -> dict[int, DecoderRows]:
        """Decode rows and wait; ``latents`` are the indices of what they read in the sequence's own latents."""
        group = GroupCall(self.graph, rows)
        self._write_latents(group, latents)
        if self.reads_states:
            for place, one in rows.items():
                self._slots[place].rows["states"].copy_to(self.graph, one.position, one.number, group.row(place))
        else:
            group.write("ids", ids)
        group.run()
        results = self.graph.fetch()
        self._stream.synchronize()
        return {place: rows_of(results, group.index(place), one.number) for place, one in rows.items()}

    def run_padding(self, places: range, rows: int) -> None:
        """Queue a call of which nobody reads anything."""
        group = GroupCall(self.graph, {}, padding=(places, rows))
        self._write_latents(group, {})
        if not self.reads_states:
            group.write("ids", {})
        group.run()

    def _write_latents(self, group: GroupCall, latents: Mapping[int, Ids]) -> None:
        """Write which latents rows read; those that pad a call read the first one of their own slot."""
        for index, place in zip(group.arrays["latent_index"], group.places, strict=True):
            index[:] = self.first_latent(place)
            if place in latents:
                index[: len(latents[place])] = self.latent_index(place, latents[place])

    def first_latent(self, place: int) -> int:
        """Return the index of a slot's first latent among those that a call has bound."""
        return self._slots[place].rows["latent_kv"].first(self.graph.together)

    def latent_index(self, place: int, latents: Ids) -> Ids:
        """Return the indices of a sequence's latents among those that a call has bound."""
        store = self._slots[place].rows["latent_kv"]
        store.check(int(latents[0]), int(latents[-1]) - int(latents[0]) + 1)
        return latents + self.first_latent(place)


def rows_of(results: Views, index: int, count: int) -> DecoderRows:
    """Return views of the first ``count`` rows of a sequence in the results of a call."""
    return DecoderRows(*[results[name][index, :count] for name in DecoderRows._fields])
