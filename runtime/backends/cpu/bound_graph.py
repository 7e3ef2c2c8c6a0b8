"""Runs one graph for one sequence: inputs and outputs of the shared session are bound to its memory by address.

A cache's input and its update are bound to the same address, so TensorScatter works in place and no cache is ever
copied. Bindings are kept for each number of rows and size of the caches' view, and pointed elsewhere when the view
moves; most steps write a few integers and run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.controls import Controls, write_controls
from fastblt.runtime.backends.cpu.buffers import BINDINGS_KEPT, Buffer, ControlInput, KvBuffers, View
from fastblt.runtime.backends.cpu.sessions import LoadedGraph
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.bundle.dtypes import TENSOR_TYPES, numpy_dtype
from fastblt.runtime.bundle.manifest import GraphSpec


class Binding:
    """Wraps an IO binding and remembers addresses, so that binding the same memory again costs nothing."""

    def __init__(self, session: Any, spec: GraphSpec) -> None:
        self.io = session.io_binding()
        self._types = {t.name: TENSOR_TYPES[t.dtype] for t in (*spec.inputs, *spec.outputs)}
        self._inputs = {t.name for t in spec.inputs}
        self._bound: dict[str, tuple[tuple[int, ...], Buffer, int]] = {}
        self._last: dict[str, int] = {}
        """Highest address at which a tensor is inside its buffer."""
        self.fresh = True
        """Until the caller has bound the tensors that never move."""
        self.view_start = -1
        """First slot of the caches' view that is bound."""

    def point(self, name: str, shape: tuple[int, ...], buffer: Buffer, row: int = 0) -> None:
        """Bind an input or output to a buffer, from ``row`` on; each tensor has one shape for the binding's life."""
        address = buffer.address + row * buffer.row_bytes
        known = self._bound.get(name)
        if known is not None and known[2] == address:
            return
        kind = self._types[name]
        if known is None or known[1] is not buffer or known[0] != shape:
            last = -1 if kind.numpy != buffer.array.dtype else buffer.bytes - prod(shape) * kind.item_bytes
            self._last[name] = buffer.address + last
        if not buffer.address <= address <= self._last[name]:
            raise ValueError(f"{name}: {kind.name} {list(shape)} from row {row} on is not inside its buffer")
        bind = self.io.bind_input if name in self._inputs else self.io.bind_output
        self._bound.pop(name, None)  # an interrupt may come before or after it is bound
        bind(name, "cpu", 0, kind.onnx, shape, address)
        self._bound[name] = (shape, buffer, address)

    def inputs(self, names: Set[str] | None = None) -> dict[str, NDArray[Any]]:
        """Return copies of what inputs are bound to, by name: all of them, or those whose names are in ``names``."""
        found = {}
        for name in self._inputs & (self._bound.keys() if names is None else names):
            shape, buffer, address = self._bound[name]
            flat = buffer.array.reshape(-1)
            first = (address - buffer.address) // flat.itemsize
            found[name] = flat[first : first + int(np.prod(shape))].reshape(shape).copy()
        return found


class BoundGraph:
    """Holds a sequence's caches, control inputs and bindings of one graph.

    Args:
        graph: its session.
        capacity: slots of its caches.
        caches: those of another graph, which this one reads and writes, too; None: its own.
    """

    def __init__(self, graph: LoadedGraph, capacity: int, caches: KvBuffers | None = None) -> None:
        self.graph = graph
        self.spec = spec = graph.spec
        stack = graph.stack
        self.window = stack.window
        if caches is None:
            tensors = [t for t in spec.inputs if t.role == "cache"]
            names, kind = [t.name for t in tensors], numpy_dtype(tensors[0].dtype)
            caches = KvBuffers(names, capacity, stack.dim, kind, stack.window)
        self.caches = caches
        self.positions, self.visible_start, self.visible_end = ControlInput(), ControlInput(), ControlInput()
        self.write_index = ControlInput()
        inputs = (self.positions, self.visible_start, self.visible_end, self.write_index)
        self._controls = Controls(*(control.values for control in inputs))
        self._bindings: OrderedDict[tuple[int, ...], Binding] = OrderedDict()
        self._appends = any(t.role == "cache_rows" for t in spec.outputs)
        """Whether outputs are the caches' new rows, which are bound to where they belong (lowered graphs)."""

    def prepare(
        self,
        position: int,
        rows: int,
        key: tuple[int, ...],
        block: int = 0,
        visible_from: int | Ids | None = None,
    ) -> Binding:
        """Write the control inputs of a call and return its binding.

        Args:
            position: of the first row.
            rows: number of rows.
            key: every other size that the caller's own tensors depend on.
            block: the last ``block`` rows see each other; the others are causal.
            visible_from: first position that each row, or every row, may see; None: 0.

        Raises:
            ValueError: the rows do not fit the caches.
        """
        view = self.caches.view(position, rows)
        if view.end > self.caches.slots:
            raise ValueError(f"{self.spec.file}: rows up to position {position + rows - 1} do not fit the caches")
        write_controls(self._controls, position, rows, view.start, self.window, block, visible_from)
        full = (view.slots, rows, *key)
        binding = self._bindings.get(full)
        if binding is None:
            binding = self._bindings[full] = self._bind(rows)
            if len(self._bindings) > BINDINGS_KEPT:
                self._bindings.popitem(last=False)
        else:
            self._bindings.move_to_end(full)
        if binding.view_start != view.start:
            self._point_caches(binding, view)
        if self._appends:
            for name, buffer in self.caches.buffers.items():
                binding.point(f"{name}_rows", (1, 1, rows, self.caches.dim), buffer, position)
        return binding

    def _bind(self, rows: int) -> Binding:
        binding = Binding(self.graph.session, self.spec)
        binding.point("positions", (1, rows), self.positions.buffer)
        binding.point("visible_start", (1, rows), self.visible_start.buffer)
        binding.point("visible_end", (1, rows), self.visible_end.buffer)
        binding.point("write_index", (1,), self.write_index.buffer)
        return binding

    def _point_caches(self, binding: Binding, view: View) -> None:
        """Bind every cache, input and update alike, to the slots of a view."""
        shape = (1, 1, view.slots, self.caches.dim)
        binding.view_start = -1  # until all are bound: an interrupt may come between
        for name, buffer in self.caches.buffers.items():
            binding.point(name, shape, buffer, view.start)
            if not self._appends:
                binding.point(f"{name}_out", shape, buffer, view.start)
        binding.view_start = view.start

    def run(self, binding: Binding) -> None:
        """Run a prepared call.

        Raises:
            GraphError: ONNX Runtime fails.
        """
        self.graph.run(binding)

    def moved_bytes(self, position: int, rows: int) -> int:
        """Return the bytes of weights and caches that a call reads."""
        return self.spec.weight_bytes + self.caches.moved_bytes(position, rows)
