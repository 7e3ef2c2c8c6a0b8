"""Computes what places the rows of a call and bounds what each of them sees: a graph's control inputs.

Slot = position - base. Every graph takes the position of each row, the slots [visible_start, visible_end) that it
attends to, and the slot that the first row's keys and values are written to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastblt.runtime.backends.protocol import ROW_CAPACITY, Ids

_ROWS: Ids = np.arange(ROW_CAPACITY)


class Controls(NamedTuple):
    """Holds the arrays of the control inputs, int64 [n] and, for ``write_index``, [1]."""

    positions: Ids
    visible_start: Ids
    visible_end: Ids
    write_index: Ids


def write_controls(
    controls: Controls,
    position: int,
    rows: int,
    base: int,
    window: int | None,
    block: int = 0,
    visible_from: int | Ids | None = None,
    padded: int | None = None,
) -> None:
    """Write the control inputs of one call.

    Args:
        controls: arrays with room for ``padded`` rows.
        position: of the first row.
        rows: number of rows.
        base: position of slot 0, >= 0; earlier positions are seen by no row.
        window: rows see this many positions, themselves included; None: all.
        block: the last ``block`` rows see each other; every other row sees positions up to its own.
        visible_from: first position that rows may see, int64 [rows] or one for all; None: 0.
        padded: number of rows of the graph's call, >= ``rows``; None: ``rows``. Rows that pad a call see themselves at
            least, or their attention would be a mean of nothing; nobody reads what comes out of them.
    """
    total = rows if padded is None else padded
    positions, start, end, write_index = controls
    write_index[0] = position - base
    if total == 1:
        # Most calls have one row: a few scalars are quicker than arrays.
        first = base if window is None else max(base, position - window + 1)
        if visible_from is not None:
            first = max(first, int(visible_from[0]) if isinstance(visible_from, np.ndarray) else visible_from)
        positions[0], start[0], end[0] = position, first - base, position + 1 - base
        return
    at = np.arange(position, position + total)
    positions[:total] = at
    start, end = start[:total], end[:total]
    np.add(at, 1 - base, out=end)
    end[rows - block : rows] = position + rows - base
    if window is None:
        start[:] = 0
    else:
        np.maximum(at - (base + window - 1), 0, out=start)
    if visible_from is not None:
        np.maximum(start[:rows], np.subtract(visible_from, base), out=start[:rows])


def write_lane_controls(controls: Controls, positions: Ids, bases: Ids, window: int | None) -> None:
    """Write the control inputs of one call for several sequences, whose rows are causal; idle rows are like others.

    Args:
        controls: arrays int64 [b, n] and, for ``write_index``, [b].
        positions: int64 [b], of each sequence's first row.
        bases: int64 [b], position of slot 0 of each, <= the first that its rows see, or any that is hidden.
        window: as for `write_controls`.
    """
    at, start, end, write_index = controls
    np.subtract(positions, bases, out=write_index)
    np.add(positions[:, None], _ROWS[: at.shape[1]], out=at)
    np.subtract(at, bases[:, None] - 1, out=end)
    if window is None:
        start.fill(0)
    else:
        np.maximum(end - window, 0, out=start)
