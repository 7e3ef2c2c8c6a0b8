"""Opens backends on ONNX Runtime's CPU provider, and finds every buffer that their sequences have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence
from fastblt.runtime.backends.protocol import Backend

OpenBackend = Callable[[str, str, int], Backend]
MANY = 65_536
"""A capacity whose caches take 8 to 17 MB each, most of which no test touches."""


def random_text(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def open_onnx(open_backend: OpenBackend, decoder_input: str, max_bytes: int) -> OnnxRuntimeBackend:
    backend = open_backend("onnxruntime", decoder_input, max_bytes)
    assert isinstance(backend, OnnxRuntimeBackend)
    return backend


def open_sequence(open_backend: OpenBackend, decoder_input: str, max_bytes: int) -> OnnxRuntimeSequence:
    """Open a backend and return its only sequence, which every session and runtime has from now on."""
    backend = open_onnx(open_backend, decoder_input, max_bytes)
    sequence = backend.new_sequence()
    sequence.close = lambda: None  # type: ignore[method-assign]
    backend.sequences = 1
    backend.new_sequence = lambda: sequence  # type: ignore[method-assign]
    return sequence


def all_buffers(sequence: OnnxRuntimeSequence) -> dict[str, Buffer]:
    """Return every buffer of a sequence, by where it is kept."""
    found = {}
    for name, value in (vars(sequence) | vars(sequence.buffers)).items():
        inner = getattr(value, "buffer", value)
        if isinstance(inner, Buffer):
            found[name] = inner
    for part, graph in sequence.graphs.items():
        found |= {f"{part}.{name}": buffer for name, buffer in graph.caches.buffers.items()}
        for name in ("positions", "visible_start", "visible_end", "write_index"):
            found[f"{part}.{name}"] = getattr(graph, name).buffer
    return found
