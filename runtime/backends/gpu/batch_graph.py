"""Binds one graph to the caches of several slots that lie side by side, and places a call of them.

A call takes a range of places of which each has the same number of rows. Places in it that have nothing to compute, and
rows beyond those of a sequence, are padding: their keys and values land behind the end of what is held there, where the
next call overwrites, and nobody reads their results.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.controls import write_controls
from fastblt.runtime.backends.gpu.bound_graph import BoundGraph, ShapeClass
from fastblt.runtime.backends.gpu.cuda import Stream, aligned
from fastblt.runtime.backends.gpu.executor import Bound, Executor
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.backends.protocol import Ids


def covering(places: Collection[int], count: int) -> range:
    """Return the smallest range of places that calls may take and that these are in, out of ``count``.

    Its size is a power of two, and it begins at a multiple of that, so that few ranges occur; the last one may be cut.
    """
    lowest, highest, size = min(places), max(places), 1
    while highest >= lowest // size * size + size:
        size *= 2
    first = lowest // size * size
    return range(first, min(first + size, count))


class BatchGraph(BoundGraph):
    """Holds a graph, the memory of one call of several sequences, and its shape classes.

    Args:
        executor: runs the graph.
        graphs: the same graph in every slot, by place; theirs are the caches.
        stream: carries the work.
        together: most sequences of a call; a call takes no places of two pieces of as many.
        home: places of the batch: calls of these begin with the first one, so that few ranges occur.
        latents: of all slots, in pieces of ``together``, where the graph reads them.
    """

    def __init__(
        self,
        executor: Executor,
        graphs: Sequence[DeviceGraph],
        stream: Stream,
        together: int,
        home: range,
        latents: Sequence[Bound] = (),
    ) -> None:
        self.graphs, self.together, self.home, self._latents = graphs, together, home, latents
        one = graphs[0]
        self.window = one.window
        self.most_rows = min(SHARED_ROWS, executor.batch_rows)
        largest = one.sizes(self.most_rows, executor.slots, executor.pool_slots, min(len(graphs), together))
        for bound in latents:
            largest["latents"] = max(largest["latents"], bound.shape[0])
        self._layout: tuple[range, int] | None = None
        """Places and rows of the last call."""
        super().__init__(executor, stream, largest, one.row_bytes, self._whole(0))

    def _whole(self, place: int) -> dict[str, Bound]:
        """Return what is bound instead of memory for the rows of a call: the latents of the slots beside a place."""
        return {"latent_kv": self._latents[place // self.together]} if self._latents else {}

    def range_of(self, places: Collection[int]) -> range:
        """Return the range of places that a call of these takes."""
        lowest, highest = min(places), max(places)
        if lowest in self.home and highest in self.home:
            lowest = max(self.home.start, lowest // self.together * self.together)
        return covering((lowest, highest), len(self.graphs))

    def padded(self, rows: int) -> int:
        """Return the rows of the shape class that a call of ``rows`` belongs to."""
        return self.graphs[0].padded(rows)

    def shape(self, rows: Mapping[int, Rows]) -> tuple[range, int]:
        """Return the places, and the rows of each, of the smallest call that holds these."""
        return self.range_of(rows), self.padded(max(each.number for each in rows.values()))

    def make_room(self, place: int, position: int | None, rows: int, padded: int) -> tuple[int, int]:
        """Make room for the rows of a place, and return position and slot of the first one.

        Args:
            place: index of the slot.
            position: of the first row; None: all are padding, behind the end.
            rows: of the sequence.
            padded: rows of the call.
        """
        caches = self.graphs[place].caches
        at = caches.end if position is None else position
        slot = caches.make_room(first_visible(at, self.window), at, padded)
        if position is not None:
            caches.end = position + rows
        return at, slot

    def choose(self, places: range, rows: int) -> ShapeClass:
        """Make the shape class of a call the current one, and return it; there must be room already.

        What calls of other classes have left for its padding rows is emptied: it may be a NaN of another text.
        """
        if self._layout != (places, rows):
            self._layout = places, rows
            for name in self.links.keys() & {tensor.name for tensor in self.spec.inputs}:
                self._stream.clear(self.links[name])
        one = self.graphs[places[0]]
        slots, pool_slots = one.caches.array.stride, one.pool.array.stride if one.pool is not None else 0
        key = (rows, places, one.caches.address(0), one.pool and one.pool.address(0), slots, pool_slots)
        whole = self._whole(places[0])

        def sizes() -> dict[str, int]:
            found = one.sizes(rows, slots, pool_slots, len(places))
            return found | ({"latents": whole["latent_kv"].shape[0]} if whole else {})

        return self._choose(key, sizes, one.cache_address, whole)

    def append_rows(self, rows: int, places: range, slots: Mapping[int, int], pool_slots: Mapping[int, int]) -> None:
        """Queue the copies of new rows into the caches, where the graph does not write them there itself.

        Args:
            rows: of the shape class.
            places: of the call.
            slots: of the first row in the caches, by place; places that are not in it take no part.
            pool_slots: of the first row in the pool, by place.
        """
        if self._rows_area is None:
            return
        width, pitch = rows * self.row_bytes, aligned(len(places) * rows * self.row_bytes)
        for place, slot in slots.items():
            graph, index = self.graphs[place], place - places[0]
            source, target = self._rows_area.address + index * width, graph.caches.address(0, slot)
            self._stream.copy_rows(target, graph.caches.lane_bytes, source, pitch, width, len(self.cache_names))
            if graph.pool is not None:
                size = rows * graph.pool.row_bytes
                source = self._rows_area.address + len(self.cache_names) * pitch + index * size
                self._stream.copy(graph.pool.address(0, pool_slots[place]), source, size)

    def moved_bytes(self, together: int) -> float:
        """Return a sequence's share of the weights, and the bytes of its caches, that a call of several reads."""
        caches = self.graphs[0].caches
        return self.spec.weight_bytes / together + caches.lanes * caches.array.stride * self.row_bytes


class Rows(NamedTuple):
    """Holds the rows of one sequence in a call."""

    position: int
    """Of the first row."""
    number: int
    """Without padding."""
    visible_from: int | Ids | None = None
    """First position that each row, or every row, may see; None: 0."""
    block: int = 0
    """The last ones, which see each other."""


#: Places of a call, and rows of each.
Padding: TypeAlias = tuple[range, int]


class GroupCall:
    """Begins a call of several sequences: makes room in their caches and writes the inputs that place the rows.

    The caller writes the other inputs to `arrays`, then runs the call.

    Args:
        graph: the graph.
        rows: of each sequence, by place.
        pool_slots: of the first row in the encoder's pool, by place, for every place of the range.
        padding: places and rows of a call that computes nothing; None: the fewest that hold ``rows``.

    Raises:
        RewindError: the caches no longer hold what the rows see.
        CapacityError: the rows do not fit the caches.
    """

    def __init__(
        self,
        graph: BatchGraph,
        rows: Mapping[int, Rows],
        pool_slots: Mapping[int, int] = MappingProxyType({}),
        padding: Padding | None = None,
    ) -> None:
        self.places, self.padded = graph.shape(rows) if padding is None else padding
        self._graph, self._pool_slots = graph, pool_slots
        placed = {}
        for place in self.places:
            one = rows.get(place)
            placed[place] = graph.make_room(place, one and one.position, one.number if one else 0, self.padded)
        self._slots = {place: placed[place][1] for place in rows}
        graph.choose(self.places, self.padded)
        inputs = graph.take_inputs()
        self.arrays = inputs.arrays
        """Inputs that the host writes, by tensor; the first axis has a row for every place of the range."""
        for controls, (place, (position, slot)) in zip(inputs.each, placed.items(), strict=True):
            one, base = rows.get(place), position - slot
            if one is None:
                write_controls(controls, position, self.padded, base, graph.window)
            else:
                write_controls(
                    controls, position, one.number, base, graph.window, one.block, one.visible_from, self.padded
                )

    def row(self, place: int) -> int:
        """Return the index of a place's first row among those of the call."""
        return self.index(place) * self.padded

    def index(self, place: int) -> int:
        """Return the index of a place in the batch."""
        return place - self.places[0]

    def write(self, name: str, values: Mapping[int, Ids]) -> None:
        """Write an input that has one number for each row, by place; those of padding are 0."""
        array = self.arrays[name]
        array[:] = 0
        for place, each in values.items():
            array[self.index(place), : len(each)] = each

    def run(self) -> None:
        """Queue the copy of the inputs to the device, the graph, and the copies of its new rows into the caches."""
        self._graph.send()
        self._graph.launch()
        self._graph.append_rows(self.padded, self.places, self._slots, self._pool_slots)
