"""A text that has computed NaN fails, and the one after it in the same place is what it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from fastblt.models.blt import Blt
from fastblt.models.tokens import encode
from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence
from fastblt.runtime.backends.eager.compilation import Compiler, Program
from fastblt.runtime.backends.eager.compiled_backend import CompiledBackend
from fastblt.runtime.backends.eager.compiled_sequence import CompiledSequence
from fastblt.runtime.backends.eager.sequence import EagerSequence
from fastblt.runtime.backends.gpu.cuda import DeviceMemory
from fastblt.runtime.backends.gpu.sequence import DeviceSequence
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats

OVERFLOWING = encode(b"The quick brown fox jumps over the lazy dog, and so on.")
NEXT = encode(b"Once")


def fill_with_nan(sequence: Any) -> None:
    """Let everything that a sequence has computed, or will, be NaN."""
    if isinstance(sequence, OnnxRuntimeSequence):
        buffers = [buffer for graph in sequence.graphs.values() for buffer in graph.caches.buffers.values()]
        buffers += [each for each in vars(sequence.buffers).values() if isinstance(each, Buffer)]
        for buffer in buffers:
            if buffer.array.dtype.kind == "f":
                buffer.array.fill(np.nan)
    elif isinstance(sequence, EagerSequence):
        caches = [tensor for cache in sequence._caches.values() for tensor in (cache.keys, cache.values)]
        for tensor in (*caches, sequence._states, sequence._latent_kv):
            tensor.fill_(np.nan)
    elif isinstance(sequence, CompiledSequence):
        named = [pair for cache in sequence._caches.values() for pair in cache.named_buffers()]
        for name, tensor in (*named, *sequence.links.named_buffers()):
            if name != "rope":
                tensor.fill_(np.nan)
    else:
        assert isinstance(sequence, DeviceSequence)
        for memory in device_memory(sequence):
            sequence.backend.stream.write(np.full(memory.size, 255, np.uint8), (memory.address, memory.size))


def device_memory(sequence: DeviceSequence) -> Iterator[DeviceMemory]:
    for graph in sequence.slot.graphs.values():
        yield from (graph.caches.array.memory, *graph.links.values())
        if graph.pool is not None:
            yield graph.pool.array.memory
    for rows in sequence.slot.rows.values():
        yield rows.array.memory


@pytest.mark.parametrize("kind", ["eager", "onnxruntime", "tensorrt-rtx", "onnxruntime-cuda"])
@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
def test_text_after_nan_is_what_it_is_alone(
    open_backend: Callable[[str, str, int], Backend], kind: str, decoder_input: str
) -> None:
    check_text_after_nan(open_backend(kind, decoder_input, 80))


class Uncompiled(Compiler):
    """Runs the modules as they are."""

    def compile(self, name: str, module: nn.Module, calls: Sequence[Sequence[Tensor]], dynamic: int | None) -> Program:
        return module


def test_text_after_nan_is_what_it_is_alone_in_the_one_compiled_sequence(tiny_model: Blt) -> None:
    check_text_after_nan(CompiledBackend(tiny_model, 80, 1, Uncompiled("cpu", {})))


def check_text_after_nan(backend: Backend) -> None:
    with Session(backend) as alone:
        alone.begin(NEXT, RunStats())
        expected = alone.score().logits.tobytes()
    session = Session(backend)
    session.begin(OVERFLOWING, RunStats())
    session.score()
    fill_with_nan(session.sequence)
    session.append(NEXT[1:])
    with pytest.raises(GraphError, match="a probability that is no number"):
        session.score()
    session.begin(NEXT, RunStats())
    assert session.score().logits.tobytes() == expected
