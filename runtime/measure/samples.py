"""Generates one text with several methods and keeps how each byte came about, to look at them side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.bench.plan import AR
from fastblt.runtime.methods import parse_method
from fastblt.runtime.progress import OnProgress, no_progress
from fastblt.runtime.sequence.stats import RunStats


@dataclass(frozen=True)
class Sample:
    """Holds a greedy text by one method."""

    method: str
    lossless: bool
    """Whether the method promises the bytes of ``ar``."""
    chunks: tuple[Chunk, ...]
    stats: RunStats
    same_bytes: int
    """Leading bytes that equal those of ``ar``."""

    @property
    def data(self) -> bytes:
        """Return the new bytes."""
        return b"".join(chunk.data for chunk in self.chunks)

    @property
    def digest(self) -> str:
        """Return the sha256 of the new bytes, 64 hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()


def write_samples(
    runtime: BltRuntime,
    methods: Sequence[str],
    prompt: bytes,
    max_new_bytes: int,
    on_progress: OnProgress = no_progress,
) -> list[Sample]:
    """Generate greedily after a prompt, once by each method, ``ar`` first whether it is asked for or not.

    Raises:
        CapacityError: prompt and new bytes exceed the runtime's ``max_bytes``.
        MethodError: a method does not exist, or the model cannot run it; nothing has been generated then.
    """
    names = list(dict.fromkeys([AR, *methods]))
    for name in names:
        parse_method(name).check(runtime.config)
    samples: list[Sample] = []
    for done, name in enumerate(names):
        on_progress(done, len(names), name)
        chunks: list[Chunk] = []
        generation = runtime.generate(prompt, max_new_bytes, method=name, on_chunk=chunks.append)
        expected = samples[0].data if samples else generation.data
        same = common_prefix(generation.data, expected)
        samples.append(Sample(name, parse_method(name).lossless, tuple(chunks), generation.stats, same))
    return samples
