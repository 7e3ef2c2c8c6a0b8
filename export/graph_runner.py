"""Runs exported graphs with plain arrays, in calls of several lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import GraphSpec
from fastblt.runtime.machine import default_threads

#: Rows of the longest call.
_LONGEST = 256
#: Caches are bound from a multiple of this on, as a runtime does, so that a slot is not its position.
_VIEW = 8


@dataclass(frozen=True)
class Call:
    """Describes one call of a graph: consecutive positions of one sequence."""

    position: int
    rows: int
    block: bool = False
    """Whether every row sees all of the call's rows."""


def plan_calls(window: int | None) -> list[Call]:
    """Return successive calls of several lengths that pass the end of the window, the last one a block."""
    window = window or _LONGEST
    lengths = [1, 7, 1, 24, 2, *[min(window, _LONGEST)] * -(-window // _LONGEST), 1, 9, 3]
    calls, position = [], 0
    for rows in lengths:
        calls.append(Call(position, rows))
        position += rows
    return [*calls, Call(position, 8, block=True)]


class GraphRunner:
    """Runs a graph on the CPU and carries its caches from call to call."""

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

    def run(self, call: Call, window: int | None, slots: int, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a call and return its outputs by name, caches left out.

        Args:
            call: its positions; calls must follow one another.
            window: positions that a row sees; None: all earlier ones.
            slots: capacity of the caches.
            inputs: the graph's other inputs; arrays are converted to its types.
        """
        at = np.arange(call.position, call.position + call.rows, dtype=np.int64)[None]
        end = np.full_like(at, call.position + call.rows) if call.block else at + 1
        start = np.zeros_like(at) if window is None else np.maximum(at - window + 1, 0)
        first = int(start.min()) // _VIEW * _VIEW
        feed: dict[str, NDArray[Any]] = {
            "positions": at,
            "write_index": at[0, :1] - first,
            "visible_start": start - first,
            "visible_end": end - first,
        }
        pool_first = int(inputs["patch_start"].min()) if "patch_start" in inputs else 0
        for name in ("patch_start", "patch_end", "pool_index"):
            if name in inputs:
                inputs[name] = inputs[name] - pool_first
        views = {"cache": first, "pool": pool_first}
        for spec in self.spec.inputs:
            if spec.role in views:
                shape = [1, 1, slots, int(spec.shape[3])]
                cache = self.caches.setdefault(spec.name, np.zeros(shape, numpy_dtype(spec.dtype)))
                feed[spec.name] = cache[:, :, views[spec.role] :]
            elif spec.name in inputs:
                feed[spec.name] = inputs[spec.name].astype(numpy_dtype(spec.dtype))
        names = [t.name for t in self.spec.outputs]
        values = dict(zip(names, self.session.run(names, feed), strict=True))
        written = slice(call.position, call.position + call.rows)
        for spec in self.spec.inputs:
            if spec.role not in views:
                continue
            if f"{spec.name}_rows" in values:
                self.caches[spec.name][:, :, written] = values.pop(f"{spec.name}_rows")
            else:
                self.caches[spec.name][:, :, views[spec.role] :] = values.pop(f"{spec.name}_out")
        return values
