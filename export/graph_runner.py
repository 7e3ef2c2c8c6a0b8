"""Runs exported graphs with plain arrays, in calls of several lengths, of one sequence and of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import GraphSpec, TensorSpec
from fastblt.runtime.machine import default_threads

#: Rows of the longest call.
_LONGEST = 256
#: Caches are bound from a multiple of this on, as a runtime does, so that a slot is not its position.
_VIEW = 8
#: Sequences of the calls that hold several, and the rows of each, call by call: where one has fewer, padding follows.
SEQUENCES = 3
_BATCHES = ((5, 12, 1), (1, 3, 9), (8, 4, 8))


@dataclass(frozen=True)
class Call:
    """Describes the rows of one sequence in a call of a graph: consecutive positions."""

    position: int
    rows: int
    block: bool = False
    """Whether every row sees all of the call's rows."""
    sequence: int = 0


#: The rows of every sequence of a call: of the first one, the first two and so on.
Calls = Sequence[Call]


def plan_calls(window: int | None) -> list[Calls]:
    """Return successive calls of several lengths.

    One sequence passes the end of its window, and ends with a block. Then two others join it, which begin; in the last
    of these calls all but the second have a block.
    """
    window = window or _LONGEST
    lengths = [1, 7, 1, 24, 2, *[min(window, _LONGEST)] * -(-window // _LONGEST), 1, 9, 3]
    calls: list[Calls] = []
    positions = [0] * SEQUENCES
    for rows in lengths:
        calls.append([Call(positions[0], rows)])
        positions[0] += rows
    calls.append([Call(positions[0], 8, block=True)])
    positions[0] += 8
    for batch in _BATCHES:
        last = batch is _BATCHES[-1]
        calls.append([Call(positions[i], rows, last and i != 1, i) for i, rows in enumerate(batch)])
        positions = [position + rows for position, rows in zip(positions, batch, strict=True)]
    return calls


def most_rows(calls: Calls) -> int:
    """Return the rows of the longest sequence of a call, which the others are padded to."""
    return max(call.rows for call in calls)


def slots_for(plan: Sequence[Calls]) -> int:
    """Return how many slots caches need, so that padding fits in, too, wherever the views of the sequences begin."""
    return max(call.position + most_rows(calls) for calls in plan for call in calls) + 2 * _VIEW


class GraphRunner:
    """Runs a graph on the CPU and carries the caches of up to `SEQUENCES` sequences from call to call."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = default_threads(spec.weight_bytes)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Packed weights would be a second copy of the model.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.spec = spec
        self.caches: dict[str, NDArray[Any]] = {}
        """[sequence, 1, slot, dim]; slot = position."""

    def run(self, calls: Calls, window: int | None, slots: int, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a call and return its outputs by name, caches left out; rows of padding are anything.

        Args:
            calls: positions of each sequence; those of a sequence must follow one another.
            window: positions that a row sees; None: all earlier ones.
            slots: capacity of the caches, see `slots_for`.
            inputs: the graph's other inputs; arrays are converted to its types.
        """
        feed, first = _placing(calls, window)
        starts = {"cache": first, "pool": first}
        if "patch_start" in inputs:
            starts["pool"] = inputs["patch_start"].min(axis=1)
            for name in ("patch_start", "patch_end", "pool_index"):
                inputs[name] = (inputs[name].T - starts["pool"]).T
        for spec in self.spec.inputs:
            if spec.role in starts:
                feed[spec.name] = np.stack(self._views(spec, starts[spec.role], slots))
            elif spec.name in inputs:
                feed[spec.name] = inputs[spec.name].astype(numpy_dtype(spec.dtype))
        names = [t.name for t in self.spec.outputs]
        values = dict(zip(names, self.session.run(names, feed), strict=True))
        for spec in (spec for spec in self.spec.inputs if spec.role in starts):
            if f"{spec.name}_rows" in values:
                rows = values.pop(f"{spec.name}_rows")
                for call, cache, new in zip(calls, self.caches[spec.name], rows, strict=False):
                    cache[:, call.position : call.position + new.shape[1]] = new
            else:
                updates = values.pop(f"{spec.name}_out")
                for view, update in zip(self._views(spec, starts[spec.role], slots), updates, strict=True):
                    view[...] = update
        return values

    def _views(self, spec: TensorSpec, starts: NDArray[np.int64], slots: int) -> list[NDArray[Any]]:
        """Return the slots [1, S, dim] of each sequence from its own start on."""
        shape = (SEQUENCES, 1, slots, int(spec.shape[3]))
        cache = self.caches.setdefault(spec.name, np.zeros(shape, numpy_dtype(spec.dtype)))
        bound = slots - int(starts.max())
        return [cache[index, :, start : start + bound] for index, start in enumerate(starts)]


def _placing(calls: Calls, window: int | None) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Return the inputs that place the rows, and the position of each sequence's first slot, [b]."""
    at = np.array([call.position for call in calls], dtype=np.int64)[:, None] + np.arange(most_rows(calls))
    end = at + 1
    for seen, call in zip(end, calls, strict=True):
        if call.block:
            seen[: call.rows] = call.position + call.rows
    start = np.zeros_like(at) if window is None else np.maximum(at - window + 1, 0)
    first = start.min(axis=1) // _VIEW * _VIEW
    placing = {
        "positions": at,
        "write_index": at[:, 0] - first,
        "visible_start": start - first[:, None],
        "visible_end": end - first[:, None],
    }
    return placing, first
