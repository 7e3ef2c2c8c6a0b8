"""Benchmarks texts that grow at the same time, from start to end: loading, measurement, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.batching import BatchingBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.bench.run import BenchRequest, load_contenders
from fastblt.runtime.measure.bench.streams.rows import StreamsRow
from fastblt.runtime.measure.bench.streams.timing import StreamsMeasurement
from fastblt.runtime.measure.loading import bundle_dtype
from fastblt.runtime.measure.peers import Generator
from fastblt.runtime.measure.requests import MOST_STREAMS
from fastblt.runtime.progress import OnProgress, no_progress


@dataclass(frozen=True)
class StreamsReport:
    """Holds what was measured."""

    request: BenchRequest
    streams: tuple[int, ...]
    model: str
    dtype: str
    """Type of the bundle: ``fp32``, ``fp16`` or ``bf16``."""
    device: dict[str, Any]
    """From `device_info`."""
    rows: list[StreamsRow]
    """One for each contender and number of texts, in this order."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"device": self.device, "replay": self.request.replay, "streams": list(self.streams), "rows": rows}


def check_streams(streams: Sequence[int]) -> tuple[int, ...]:
    """Return numbers of texts.

    Raises:
        ValueError: they do not ascend, or one is not in 1..`MOST_STREAMS`.
    """
    ascending = all(a < b for a, b in pairwise(streams))
    if not streams or not ascending or streams[0] < 1 or streams[-1] > MOST_STREAMS:
        found = ",".join(map(str, streams)) or "none"
        raise ValueError(f"streams: found {found}, expected ascending whole numbers from 1 to {MOST_STREAMS}")
    return tuple(streams)


def run_streams_bench(
    bundle: Path,
    request: BenchRequest,
    streams: Sequence[int],
    prompts: Sequence[bytes],
    on_progress: OnProgress = no_progress,
) -> StreamsReport:
    """Load the backends of a request, and let texts grow with each method, greedily, so many at the same time.

    Args:
        bundle: as for `fastblt.runtime.measure.bench.run.run_bench`.
        request: what to measure.
        streams: numbers of texts, ascending.
        prompts: at least one; texts take them in turn.
        on_progress: called between runs, never while one is timed.

    Raises:
        CapacityError: there is no memory for so many texts; the message has the number that fits.
        ValueError: ``streams`` are not ascending, or there are no prompts.
        Exception: as `fastblt.runtime.measure.bench.run.run_bench`.
    """
    streams = check_streams(streams)
    if not prompts:
        raise ValueError("bench: found no prompts, expected at least 1")
    plan, runtimes, profiles = load_contenders(bundle, request, prompts, max(streams))
    weights = weights_of(bundle, runtimes)
    measurement = StreamsMeasurement(runtimes, plan, streams, prompts, request.max_new_bytes, weights, profiles)
    rows = measurement.measure(request.repeats, on_progress)
    model = runtimes[request.backend].config.name
    return StreamsReport(request, streams, model, bundle_dtype(bundle), device_info(request.threads), rows)


def weights_of(bundle: Path, runtimes: Mapping[str, Generator]) -> dict[str, float]:
    """Return the bytes of the weights of each part, where a backend can share calls; those run graphs of bundles."""
    backends = [runtime.backend for runtime in runtimes.values() if isinstance(runtime, BltRuntime)]
    if not any(isinstance(backend, BatchingBackend) for backend in backends):
        return {}
    return {part: spec.weight_bytes for part, spec in Bundle.open(bundle, check=False).manifest.graphs.items()}
