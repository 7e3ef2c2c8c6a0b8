"""Benchmarks a bundle from start to end: plan, loading, measurement, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.registry import DEFAULT_BACKEND, default_capacity
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.bench.plan import BenchPlan, Contender, make_bench_plan
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.timing import measure
from fastblt.runtime.measure.loading import bundle_dtype
from fastblt.runtime.measure.peers import PEERS, Generator, load_peer
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.measure.requests import require_at_least
from fastblt.runtime.methods.registry import bench_defaults
from fastblt.runtime.methods.replay_profile import ReplayProfile
from fastblt.runtime.progress import OnProgress, no_progress


@dataclass(frozen=True)
class BenchRequest:
    """Specifies what a benchmark measures.

    Raises:
        ValueError: a number is out of range.
    """

    methods: tuple[str, ...] = field(default_factory=bench_defaults)
    """Methods of ``backend``, by default those that the registry lists; ``ar`` is measured in any case."""
    against: tuple[str, ...] = ()
    """Further contenders: ``BACKEND`` (its ``ar``), ``BACKEND/METHOD``, or a peer such as ``transformers``."""
    backend: str = DEFAULT_BACKEND
    provider: str = "auto"
    threads: int | None = None
    """Threads of one operator; None: the backend's choice."""
    tuned_threads: int | None = None
    """What ``backend`` takes where ``threads`` is None: what suits it is no measure for those that it is compared with.
    """
    max_bytes: int | None = None
    """Capacity of the caches, prompt and new bytes; None: enough."""
    max_new_bytes: int = 128
    """Bytes to generate after each prompt; at least 2, or no time is left after the first."""
    repeats: int = 1
    """Measurements of each prompt."""
    replay: str | None = None
    """Rates to replay at, in the syntax of `fastblt.runtime.measure.replay.rates`; None: the model's own output."""

    def threads_of(self, backend: str) -> int | None:
        """Return the threads of a backend or peer; None: its own choice."""
        return self.tuned_threads if self.threads is None and backend == self.backend else self.threads

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(
            1, threads=self.threads, tuned_threads=self.tuned_threads, max_bytes=self.max_bytes, repeats=self.repeats
        )
        require_at_least(2, max_new_bytes=self.max_new_bytes)


@dataclass(frozen=True)
class BenchReport:
    """Holds what a benchmark measured."""

    request: BenchRequest
    plan: BenchPlan
    model: str
    dtype: str
    """Type of the bundle: ``fp32``, ``fp16`` or ``bf16``."""
    device: dict[str, Any]
    """From `device_info`."""
    rows: list[BenchRow]
    """One for each contender, in the plan's order."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types: ``device``, ``replay`` (null: the model's own output) and ``rows``."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"device": self.device, "replay": self.request.replay, "rows": rows}


def run_bench(
    bundle: Path, request: BenchRequest, prompts: Sequence[bytes], on_progress: OnProgress = no_progress
) -> BenchReport:
    """Load the backends of a request and measure its methods after prompts, greedily.

    Args:
        bundle: folder of the bundle; of a checkpoint where only ``eager`` or peers run.
        request: what to measure.
        prompts: at least one.
        on_progress: called between runs, never while one is timed. A display that redraws from another thread would
            disturb what is measured.

    Raises:
        BundleError: the bundle cannot be used.
        CapacityError: prompts and new bytes exceed ``max_bytes``.
        MethodError: a method does not exist, or the model cannot run it.
        ReplayError: ``replay`` is malformed or does not fit the methods.
        ValueError: there are no prompts.
    """
    plan, runtimes, profiles = load_contenders(bundle, request, prompts)
    config = runtimes[request.backend].config
    measurement = measure(
        runtimes,
        plan,
        prompts,
        request.max_new_bytes,
        request.repeats,
        on_progress,
        profiles=profiles,
        threads=request.threads,
    )
    device = device_info(request.threads)
    return BenchReport(request, plan, config.name, bundle_dtype(bundle), device, measurement.rows())


def load_contenders(
    bundle: Path, request: BenchRequest, prompts: Sequence[bytes], sequences: int | None = None
) -> tuple[BenchPlan, dict[str, Generator], dict[Contender, ReplayProfile] | None]:
    """Load the backends and peers of a request.

    Args:
        bundle: as for `run_bench`.
        request: what to measure.
        prompts: all of them.
        sequences: most texts at once; None: the backend's choice.

    Returns:
        Who is measured, what runs them by name, and how they are replayed (None: the model's own output).

    Raises:
        CapacityError: there is no memory for so many texts; the message has the number that fits.
        Exception: as `run_bench`.
    """
    plan = make_bench_plan(request.backend, request.methods, request.against)
    rates = None if request.replay is None else ReplayRates.parse(request.replay, plan.methods)
    needed = max(map(len, prompts), default=0) + request.max_new_bytes
    max_bytes = request.max_bytes or default_capacity(request.backend, needed)
    runtimes = {name: _load(bundle, name, request, max_bytes, sequences) for name in plan.backends}
    config = runtimes[request.backend].config
    profiles = None if rates is None else {c: rates.profile(c.method, config) for c in plan.contenders}
    return plan, runtimes, profiles


def _load(bundle: Path, name: str, request: BenchRequest, max_bytes: int, sequences: int | None) -> Generator:
    """Load one of our backends, or a peer."""
    if name in PEERS:
        return load_peer(bundle, name, request.provider, request.threads)
    return BltRuntime.from_pretrained(
        bundle,
        provider=request.provider,
        backend=name,
        max_bytes=max_bytes,
        threads=request.threads_of(name),
        sequences=sequences,
        reuse_prompts=False,  # what is repeated is measured as if it came for the first time
    )
