"""Prepares one call of a graph: room in the caches, inputs that place its rows, the launch."""

from __future__ import annotations

from collections.abc import Iterator

from fastblt.runtime.backends.controls import write_controls
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS
from fastblt.runtime.backends.protocol import Ids


class Call:
    """Begins a call of a graph: makes room in its caches and writes the inputs that place the rows.

    The caller writes the other inputs to `arrays`, then runs the call.

    Args:
        graph: the graph.
        position: of the first row.
        rows: number of rows, without padding.
        block: the last ``block`` rows see each other; the others are causal.
        visible_from: first position that each row, or every row, may see; None: 0.
        pool_slot: of the first row in the encoder's pool.

    Raises:
        RewindError: the caches no longer hold what the rows see.
        CapacityError: the rows do not fit the caches.
    """

    __slots__ = ("_graph", "_padding", "_pool_slot", "_slot", "arrays")

    def __init__(
        self,
        graph: DeviceGraph,
        position: int,
        rows: int,
        *,
        block: int = 0,
        visible_from: int | Ids | None = None,
        pool_slot: int = 0,
    ) -> None:
        padding = graph.padded(rows)
        slot = graph.make_room(position, padding)
        graph.caches.end = position + rows
        inputs = graph.begin(padding, slot + padding, pool_slot + padding)
        self.arrays = inputs.arrays
        """Inputs that the host writes, by tensor."""
        write_controls(inputs.controls, position, rows, position - slot, graph.window, block, visible_from, padding)
        self._graph, self._padding, self._slot, self._pool_slot = graph, padding, slot, pool_slot

    def write(self, name: str, values: Ids) -> None:
        """Write an input that has one number for each row; those of padding are 0."""
        row = self.arrays[name][0]
        if len(values) == len(row):
            row[:] = values
        else:
            row[: len(values)] = values
            row[len(values) :] = 0

    def run(self) -> None:
        """Queue the copy of the inputs to the device, the graph, and the copy of its new rows into the caches."""
        self._graph.send()
        self._graph.launch()
        self._graph.append_rows(self._padding, self._slot, self._pool_slot)


def pieces(rows: int, block: int = 0) -> Iterator[tuple[int, int]]:
    """Cut rows into pieces of at most `CALL_ROWS`, as pairs of first and end; the last ``block`` rows stay together."""
    first = 0
    while rows - first > CALL_ROWS:
        end = min(first + CALL_ROWS, rows - block)
        yield first, end
        first = end
    yield first, rows
