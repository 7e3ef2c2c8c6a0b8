"""Runs one graph for the sequences of a group: its tensors are bound to their lanes, and to rows packed per call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.controls import Controls, write_lane_controls
from fastblt.runtime.backends.cpu.bound_graph import Binding
from fastblt.runtime.backends.cpu.buffers import BINDINGS_KEPT, Buffer
from fastblt.runtime.backends.cpu.lane_groups import Group
from fastblt.runtime.backends.cpu.lanes import Lanes
from fastblt.runtime.backends.cpu.sessions import LoadedGraph
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BATCH, GraphSpec, TensorSpec

#: Sizes of a call by symbolic axis.
Sizes = Mapping[str, int]
_CONTROLS = ("positions", "visible_start", "visible_end", "write_index")


class GroupCall(Binding):
    """Holds the bindings of calls of one shape, and views of all that is packed for them.

    Attributes:
        views: by tensor, [lanes, ...].
        controls: those that place the rows.
    """

    views: dict[str, NDArray[Any]]
    controls: Controls


class BatchedGraph:
    """Holds what all calls of one graph for several sequences share: lanes, and memory for every other tensor.

    Args:
        graph: its session.
        lanes: of its stack.
        most: largest sizes of its symbolic axes; sizes of calls have the same keys, in the same order.
        shared: memory of tensors that other graphs write or read, by name.
    """

    def __init__(self, graph: LoadedGraph, lanes: Lanes, most: Sizes, shared: Mapping[str, Buffer]) -> None:
        self.graph = graph
        self.lanes = lanes
        spec = graph.spec
        self._rows = [t.name for t in spec.outputs if t.role == "cache_rows"]
        self._packed = packed_tensors(spec)
        self._shared = shared
        self._memory = {t.name: _memory(t, most) for t in self._packed if t.name not in shared} | dict(shared)
        if "pool_out" in self._memory:  # updated in place
            self._memory["pool_out"] = self._memory["pool"]
        self._calls: OrderedDict[tuple[int, ...], GroupCall] = OrderedDict()

    @property
    def packed_bytes(self) -> int:
        """Return the bytes of all that is packed for calls, at most, without what other graphs share."""
        return sum(
            memory.bytes for name, memory in self._memory.items() if name not in self._shared and name != "pool_out"
        )

    def prepare(self, group: Group, sizes: Sizes) -> GroupCall:
        """Return the call of a group, bound to its lanes; its rows are placed as causal ones.

        Args:
            group: of sequences.
            sizes: of the symbolic axes, without those of lanes and slots.
        """
        key = (group.of, group.lanes, *sizes.values())
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._bind(group, sizes)
            if len(self._calls) > BINDINGS_KEPT:
                self._calls.popitem(last=False)
        else:
            self._calls.move_to_end(key)
        if call.view_start != group.first:
            self._point_caches(call, group)
        self._place(call, group)
        return call

    def _bind(self, group: Group, sizes: Sizes) -> GroupCall:
        call = GroupCall(self.graph.session, self.graph.spec)
        call.views = {}
        found = {BATCH: group.lanes, **sizes}
        for tensor in self._packed:
            shape = tuple(found[size] if isinstance(size, str) else size for size in tensor.shape)
            memory = self._memory[tensor.name]
            call.point(tensor.name, shape, memory)
            call.views[tensor.name] = memory.array.reshape(-1)[: prod(shape)].reshape(shape)
        call.controls = Controls(*(call.views[name] for name in _CONTROLS))
        return call

    def _point_caches(self, call: GroupCall, group: Group) -> None:
        """Bind every cache, input and update alike, to the lanes of a group."""
        shape = (group.lanes, 1, self.lanes.classes.slots[group.of], self.lanes.dim)
        call.view_start = -1  # until all are bound: an interrupt may come between
        for name, memory in self.lanes.buffers(group.of).items():
            call.point(name, shape, memory, group.first)
            if not self._rows:
                call.point(f"{name}_out", shape, memory, group.first)
        call.view_start = group.first

    def _place(self, call: GroupCall, group: Group) -> None:
        """Write the control inputs; idle lanes are written behind all that their sequences need."""
        lanes, of = self.lanes, group.of
        seats = range(group.first, group.first + group.lanes)
        if group.lanes == len(group.members):
            bases = lanes.base[seats.start : seats.stop]
            positions = [member.position for member in group.members]
        else:
            theirs = [lanes.class_of[seat] == of for seat in seats]
            bases = [lanes.base[seat] * has for seat, has in zip(seats, theirs, strict=True)]
            positions = [lanes.end[seat] * has for seat, has in zip(seats, theirs, strict=True)]
            for member in group.members:
                positions[member.seat - group.first] = member.position
        write_lane_controls(call.controls, np.array(positions), np.array(bases), lanes.classes.window)

    def advance(self, call: GroupCall, group: Group) -> None:
        """Place the rows one position after those which the call has run; none of the lanes is idle or full."""
        for member in group.members:
            self.lanes.end[member.seat] += 1
        at, start, end, write_index = call.controls
        for values in (at, end, write_index):
            np.add(values, 1, out=values)
        window = self.lanes.classes.window
        if window is not None:
            np.maximum(end - window, 0, out=start)

    def see(self, call: GroupCall, group: Group, member: int, rows: int, block: int, first: int | Ids | None) -> None:
        """Change what the rows of a member see.

        Args:
            call: prepared for the group.
            group: of the member.
            member: which of its members.
            rows: number of its own rows.
            block: its last ``block`` rows see each other.
            first: position, or positions int64 [rows], before which they see nothing; None: 0.
        """
        seat = group.members[member].seat
        lane, base = seat - group.first, self.lanes.base[seat]
        if block:
            call.controls.visible_end[lane, rows - block : rows] = group.members[member].position + rows - base
        if first is not None:
            start = call.controls.visible_start[lane, :rows]
            np.maximum(start, np.subtract(first, base), out=start)

    def run(self, call: GroupCall, group: Group) -> None:
        """Run a prepared call.

        Raises:
            GraphError: ONNX Runtime fails.
        """
        self.graph.run(call)
        if self._rows:
            self._append(call, group)

    def _append(self, call: GroupCall, group: Group) -> None:
        """Copy the new rows of every lane to their place in the caches: those of lowered graphs lie side by side."""
        seats = np.arange(group.first, group.first + group.lanes)[:, None]
        slots = call.controls.write_index[:, None] + np.arange(group.rows)
        for name, buffer in self.lanes.buffers(group.of).items():
            buffer.array[seats, slots] = call.views[f"{name}_rows"][:, 0]

    def moved_bytes(self, group: Group) -> float:
        """Return each member's share of the bytes that a call reads: its weights, and the caches of all lanes."""
        slots = group.lanes * self.lanes.classes.slots[group.of]
        return (self.graph.spec.weight_bytes + slots * self.lanes.slot_bytes) / len(group.members)


def packed_tensors(spec: GraphSpec) -> list[TensorSpec]:
    """Return the tensors of a graph that are not caches."""
    return [tensor for tensor in (*spec.inputs, *spec.outputs) if tensor.role not in ("cache", "cache_update")]


def _memory(tensor: TensorSpec, most: Sizes) -> Buffer:
    """Return memory for the largest shape of a tensor."""
    return Buffer(memory_elements(tensor, most), (), numpy_dtype(tensor.dtype))


def memory_elements(tensor: TensorSpec, most: Sizes) -> int:
    """Return the elements of the largest shape of a tensor."""
    return prod(most[size] if isinstance(size, str) else size for size in tensor.shape)
