"""Records calls of every graph from a real generation on the CPU: all inputs, caches included, and all outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastblt.runtime.blt_runtime import BltRuntime

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
    from fastblt.runtime.backends.cpu.bound_graph import Binding

#: Drafts and verifies: the decoder sees calls of one row and of eight, past a prompt.
RECORDED_METHOD = "s:7"
#: Method for the graph of blocks, where a model has one, by the size of a block: calls of that many rows.
BLOCK_METHOD = "d:{}@one"

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class RecordedCall:
    """Holds one call of a graph."""

    part: str
    rows: int
    """Bytes; patches for the global transformer."""
    position: int
    """Of the first row."""
    inputs: Tensors
    """By name, caches as they were before the call."""
    outputs: Tensors
    """By name; updated caches are arrays of their own."""


class _LastCalls:
    """Keeps the inputs of a graph's last call with the fewest rows, and of its last call with more.

    Calls with a power of two of rows come first: a GPU runs no others, and TensorRT has no kernels for some of them.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Tensors] = {}

    def note(self, binding: Binding) -> None:
        """Copy what a call is about to read."""
        inputs = binding.inputs()
        rows = inputs["positions"].shape[-1]
        if self.kept and not _is_padded(rows) and any(map(_is_padded, self.kept)):
            return
        if _is_padded(rows):
            self.kept = {other: known for other, known in self.kept.items() if _is_padded(other)}
        self.kept.pop(rows, None)
        self.kept[rows] = inputs
        more = [other for other in self.kept if other != min(self.kept)]
        for other in more[:-1]:
            del self.kept[other]


def _is_padded(rows: int) -> bool:
    """Return whether it is a power of two."""
    return rows & (rows - 1) == 0


def _padded_below(rows: int) -> int:
    """Return the largest power of two that is not greater."""
    return 1 << (rows.bit_length() - 1)


def record_calls(backend: OnnxRuntimeBackend, prompt: bytes, new_bytes: int) -> list[RecordedCall]:
    """Generate, and return one or two calls of each graph: one of few rows, one of more.

    Outputs are computed again from the recorded inputs, in the same session: a generation updates caches in place.

    Args:
        backend: on the CPU; its ``max_bytes`` is at least ``len(prompt) + new_bytes``.
        prompt: any bytes.
        new_bytes: to generate after it.
    """
    last = {part: _LastCalls() for part in backend.graphs}
    before = {part: graph.on_run for part, graph in backend.graphs.items()}
    try:
        runtime = BltRuntime(backend, reuse_prompts=False)
        for part, graph in backend.graphs.items():
            graph.on_run = last[part].note
        runtime.generate(prompt, new_bytes, method=RECORDED_METHOD)
        if "draft" in backend.graphs:
            for part in backend.graphs.keys() - {"draft"}:
                backend.graphs[part].on_run = before[part]
            runtime.generate(prompt, new_bytes, method=BLOCK_METHOD.format(_padded_below(backend.config.block_size)))
    finally:
        for part, graph in backend.graphs.items():
            graph.on_run = before[part]
    calls = []
    for part, graph in backend.graphs.items():
        names = [spec.name for spec in graph.spec.outputs]
        for rows, inputs in sorted(last[part].kept.items()):
            outputs = dict(zip(names, graph.session.run(names, inputs), strict=True))
            calls.append(RecordedCall(part, rows, int(inputs["positions"][0, 0]), inputs, outputs))
    return calls
