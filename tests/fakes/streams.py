"""Opens streams of a known text, and reads them together."""

from __future__ import annotations

from typing import Any

from fakes.arrivals import TEXT

from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream


def stream(runtime: BltRuntime, start: int, method: str = "s:4", new_bytes: int = 20, **options: Any) -> ByteStream:
    """Open a stream of the 30 bytes of the text from ``start`` on."""
    return runtime.stream(TEXT[start : start + 30], new_bytes, method=method, stop_at_eos=False, **options)


def read(scheduler: RoundScheduler, streams: list[ByteStream]) -> list[bytes]:
    """Read streams to their ends, together."""
    found = [b""] * len(streams)
    while growing := [index for index, each in enumerate(streams) if each.open]:
        steps = scheduler.step([streams[index] for index in growing])
        for index, step in zip(growing, steps, strict=True):
            assert step.error is None
            found[index] += step.chunk.data if step.chunk else b""
    return found
