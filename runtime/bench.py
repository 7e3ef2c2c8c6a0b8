"""Measures prompts x methods x backends alternately in one process, and compares their output.

For every prompt all contenders run in turn, and the order is rotated from prompt to prompt, so that the drift
of a noisy machine meets all of them alike. What is measured is greedy decoding to a fixed number of bytes
(fewer where the model ends the document).

What the figures mean (`BenchRow` has them all):

* The decode rate leaves the prompt out: bytes after the first, divided by the time after the first byte. The
  time to the first byte (``first_byte_ms``) holds the prompt.
* Calls, bytes and GB are totals over all runs of a row.
* Every backend's ``ar`` is always measured: the other methods of the backend are compared with its output.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.runtime.backend import PARTS
from fastblt.runtime.methods import parse_method
from fastblt.runtime.stats import RunStats

if TYPE_CHECKING:
    from fastblt.runtime.blt_runtime import BltRuntime

AR = "ar"
EAGER = "eager"

#: New bytes of the unmeasured first run of a contender: enough rounds to settle buffers and caches.
WARM_UP_BYTES = 48


@dataclass(frozen=True)
class Contender:
    """One way of decoding on one backend."""

    backend: str
    method: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.method}"


@dataclass(frozen=True)
class Plan:
    """Who is measured, and whose output ``ar`` is compared with."""

    contenders: tuple[Contender, ...]
    backend: str
    """The backend that the bench is about."""
    baseline: str | None
    """The first other backend."""

    def reference(self, contender: Contender) -> Contender:
        """Whose output a contender's has to equal, byte for byte.

        A method other than ``ar``: its own backend's ``ar``. ``ar`` of the bench's backend: the baseline's
        ``ar`` (without a baseline its own, so that only repeats can differ). ``ar`` of another backend: the
        bench's backend's ``ar``.
        """
        if contender.method != AR:
            return Contender(contender.backend, AR)
        other = self.baseline if contender.backend == self.backend else self.backend
        return Contender(other or contender.backend, AR)


@dataclass(frozen=True)
class Run:
    """One measured generation."""

    prompt: int
    """Index of the prompt."""
    data: bytes
    stats: RunStats


@dataclass(frozen=True)
class BenchRow:
    """The figures of one contender. The names are a contract: scripts read them from JSON."""

    backend: str
    method: str
    """As given, e.g. ``s:8``."""
    device: str
    """``cpu`` or ``cuda``."""
    prompts: int
    repeats: int
    prompt_bytes: int
    """Bytes of all prompts, once."""
    max_new_bytes: int
    bytes: int
    """New bytes of all runs."""
    bytes_per_s: float
    """New bytes after the first of each run, divided by the seconds after the first byte."""
    bytes_per_s_with_prompt: float
    """New bytes divided by all seconds, the prompt included."""
    ms_per_byte_p50: float
    """Median over the bytes of all runs; a round's time is shared evenly by its bytes."""
    ms_per_byte_p95: float
    first_byte_ms: float
    """Median over the runs, from the call to the first byte."""
    nfe_patcher: int
    nfe_encoder: int
    nfe_global: int
    nfe_decoder: int
    rounds: int
    drafted: int
    accepted: int
    acceptance: float | None
    """``accepted / drafted``; null where nothing is drafted."""
    identical_to_ar: bool
    """Whether every run's bytes equal those of the reference (`Plan.reference`) after the same prompt."""
    ratio_to_ar: float | None
    """``bytes_per_s`` divided by that of the bench's backend with ``ar``; null where nothing was timed."""
    ratio_to_eager_ar: float | None
    """The same with eager ``ar``; null where that is not measured."""
    estimated_gb: float
    """Weight traffic by the paper's formula (16-bit weights, no patcher, no caches)."""
    moved_gb: float
    """Weights, in the type they have, and cache entries that the calls read."""
    us_per_byte: dict[str, float]
    """Where the time of a byte goes, prompt included: microseconds of each part, and of the control flow (``host``)."""
    moved_gb_per_s: float
    """``moved_gb`` divided by all seconds; compare with the device's ``memory_gb_per_s``."""
    peak_rss_mb: float | None
    """Largest resident memory (MiB) of the *process*, all backends in it, up to this contender's last run."""


def make_plan(backend: str, methods: Sequence[str], against: Sequence[str] = ()) -> Plan:
    """Lay out a measurement.

    Args:
        backend: whom the bench is about.
        methods: of that backend, e.g. ``s:8``.
        against: further contenders, ``BACKEND`` (its ``ar``) or ``BACKEND/METHOD``.

    Returns:
        All contenders without repetition; each backend's ``ar`` comes first, asked for or not.

    Raises:
        MethodError: a method does not exist.
    """
    wanted = [Contender(backend, method) for method in methods]
    for item in against:
        name, _, method = item.partition("/")
        wanted.append(Contender(name, method or AR))
    found: dict[Contender, None] = {}
    for contender in [Contender(backend, AR), *wanted]:
        parse_method(contender.method)
        found.setdefault(Contender(contender.backend, AR))
        found.setdefault(contender)
    others = [contender.backend for contender in found if contender.backend != backend]
    return Plan(tuple(found), backend, others[0] if others else None)


@dataclass(frozen=True)
class Measurement:
    """All runs of a plan; `rows` makes the figures."""

    plan: Plan
    prompts: Sequence[bytes]
    max_new_bytes: int
    repeats: int
    config: BltConfig
    devices: Mapping[str, str]
    """``cpu`` or ``cuda``, by backend."""
    runs: Mapping[Contender, Sequence[Run]]
    peaks: Mapping[Contender, float | None]
    """`peak_rss_mb` after the last run."""

    def rows(self) -> list[BenchRow]:
        """One row for each contender, in the plan's order."""
        return [self._row(contender) for contender in self.plan.contenders]

    def _row(self, contender: Contender) -> BenchRow:
        runs = self.runs[contender]
        all_stats = [run.stats for run in runs]
        seconds = [second for stats in all_stats for second in stats.byte_seconds] or [0.0]
        new_bytes = sum(stats.new_bytes for stats in all_stats)
        drafted, accepted = (
            sum(stats.drafted for stats in all_stats),
            sum(stats.accepted for stats in all_stats),
        )
        rate = decode_rate(runs)
        moved_gb = sum(stats.moved_bytes for stats in all_stats) / 1e9
        return BenchRow(
            backend=contender.backend,
            method=contender.method,
            device=self.devices[contender.backend],
            prompts=len(self.prompts),
            repeats=self.repeats,
            prompt_bytes=sum(map(len, self.prompts)),
            max_new_bytes=self.max_new_bytes,
            bytes=new_bytes,
            bytes_per_s=rate,
            bytes_per_s_with_prompt=_ratio(new_bytes, sum(stats.total_seconds for stats in all_stats)) or 0.0,
            ms_per_byte_p50=1e3 * float(np.percentile(seconds, 50)),
            ms_per_byte_p95=1e3 * float(np.percentile(seconds, 95)),
            first_byte_ms=1e3 * statistics.median(stats.first_byte_seconds for stats in all_stats),
            nfe_patcher=sum(stats.nfe["patcher"] for stats in all_stats),
            nfe_encoder=sum(stats.nfe["encoder"] for stats in all_stats),
            nfe_global=sum(stats.nfe["global"] for stats in all_stats),
            nfe_decoder=sum(stats.nfe["decoder"] for stats in all_stats),
            rounds=sum(stats.rounds for stats in all_stats),
            drafted=drafted,
            accepted=accepted,
            acceptance=_ratio(accepted, drafted),
            identical_to_ar=identical(runs, self.runs[self.plan.reference(contender)]),
            ratio_to_ar=_ratio(rate, decode_rate(self.runs[Contender(self.plan.backend, AR)])),
            ratio_to_eager_ar=_ratio(rate, decode_rate(self.runs.get(Contender(EAGER, AR), ()))),
            estimated_gb=sum(stats.estimated_gb(self.config) for stats in all_stats),
            moved_gb=moved_gb,
            us_per_byte=breakdown(all_stats),
            moved_gb_per_s=_ratio(moved_gb, sum(stats.total_seconds for stats in all_stats)) or 0.0,
            peak_rss_mb=self.peaks[contender],
        )


def measure(
    runtimes: Mapping[str, BltRuntime],
    plan: Plan,
    prompts: Sequence[bytes],
    max_new_bytes: int,
    repeats: int = 1,
    on_run: Callable[[Contender], None] | None = None,
) -> Measurement:
    """Measure all contenders of a plan, after one unmeasured run of each.

    Args:
        runtimes: loaded, by backend name.
        plan: from `make_plan`.
        prompts: at least one.
        max_new_bytes: bytes to generate after each prompt; at least 2, or nothing is left of the decode rate.
        repeats: how often each prompt is measured.
        on_run: called after each run, unmeasured ones included.

    Raises:
        CapacityError: a prompt and its new bytes do not fit a runtime.
        ValueError: nothing to measure.
    """
    if not prompts or max_new_bytes < 2 or repeats < 1:
        raise ValueError(
            f"bench: found {len(prompts)} prompts, max_new_bytes={max_new_bytes}, repeats={repeats}, "
            "expected at least 1, 2 and 1"
        )

    def run(contender: Contender, index: int, count: int) -> Run:
        runtime = runtimes[contender.backend]
        generation = runtime.generate(prompts[index], count, method=contender.method)
        if on_run:
            on_run(contender)
        return Run(index, generation.data, generation.stats)

    for contender in plan.contenders:
        run(contender, 0, min(max_new_bytes, WARM_UP_BYTES))
    runs: dict[Contender, list[Run]] = {contender: [] for contender in plan.contenders}
    peaks: dict[Contender, float | None] = {}
    for turn in range(repeats * len(prompts)):
        for contender in rotated(plan.contenders, turn):
            runs[contender].append(run(contender, turn % len(prompts), max_new_bytes))
            peaks[contender] = peak_rss_mb()
    devices = {name: runtime.backend.device for name, runtime in runtimes.items()}
    config = runtimes[plan.backend].config
    return Measurement(plan, prompts, max_new_bytes, repeats, config, devices, runs, peaks)


def rotated(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    """The contenders in the order of one turn; over as many turns as contenders each is first once."""
    shift = turn % len(contenders)
    return [*contenders[shift:], *contenders[:shift]]


def decode_rate(runs: Sequence[Run]) -> float:
    """Bytes after the first of each run, divided by the seconds after the first byte (no bytes: 0.0)."""
    later = [run.stats for run in runs if run.stats.new_bytes > 1]
    seconds = sum(stats.total_seconds - stats.first_byte_seconds for stats in later)
    return _ratio(sum(stats.new_bytes - 1 for stats in later), seconds) or 0.0


def identical(runs: Sequence[Run], reference: Sequence[Run]) -> bool:
    """Whether every run's bytes equal the bytes of the reference's first run after the same prompt."""
    expected: dict[int, bytes] = {}
    for run in reference:
        expected.setdefault(run.prompt, run.data)
    return all(run.data == expected[run.prompt] for run in runs)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def breakdown(all_stats: Sequence[RunStats]) -> dict[str, float]:
    """Microseconds per new byte of each part and of everything outside the backend (``host``)."""
    count = max(1, sum(stats.new_bytes for stats in all_stats))
    parts = {part: sum(stats.part_seconds[part] for stats in all_stats) for part in PARTS}
    parts["host"] = sum(stats.total_seconds for stats in all_stats) - sum(parts.values())
    return {part: 1e6 * seconds / count for part, seconds in parts.items()}


def device_info(threads: int | None = None) -> dict[str, Any]:
    """The machine and the versions that a measurement depends on; plain JSON types.

    Args:
        threads: what the runtimes were asked for; None: their own choice.
    """
    packages = ("fastblt", "numpy", "onnxruntime-gpu", "onnxruntime", "torch")
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gb_per_s": memory_bandwidth(),
        "gpus": _gpus(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name)) is not None},
    }


def memory_bandwidth(megabytes: int = 256) -> float:
    """GB/s at which one thread reads main memory: the best of five sums over an array larger than the caches."""
    array = np.ones(megabytes * 2**18, dtype=np.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        array.sum()
        seconds.append(time.perf_counter() - began)
    return array.nbytes / min(seconds) / 1e9


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return (names[0] if names else "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_report(path: Path, device: Mapping[str, Any], rows: Sequence[BenchRow]) -> None:
    """Write ``{"device": {...}, "rows": [...]}``, the whole file or none of it."""
    write_json(path, {"device": dict(device), "rows": [dataclasses.asdict(row) for row in rows]})


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, the whole file or none of it."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
