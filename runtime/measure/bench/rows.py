"""Computes the figures of a benchmark: one row for each contender.

* The decode rate leaves the prompt out: bytes after the first, divided by the time after the first byte. The
  time to the first byte (``first_byte_ms``) holds the prompt.
* Calls, bytes and GB are totals over all runs of a row, prompts included; ``per_512`` are those divided by the new
  bytes, times 512 (the paper's columns).
* Savings are against the same backend's ``ar``, byte for byte: ``estimated_saving`` by the paper's formula,
  ``measured_saving`` of the decode rate.
* The limit is the time that ``moved_gb`` takes at the bandwidth of main memory, measured with all threads allowed.
* A replay (`fastblt.runtime.measure.replay.backend`) has figures of cost and speed, none of output.
* Every backend's ``ar`` is always measured: the other methods of the backend are compared with its output.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import parts_in
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.bench.plan import AR, EAGER, PYTORCH, BenchPlan, Contender
from fastblt.runtime.measure.replay.draws import ReplayCounts
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.replay_profile import ReplayProfile
from fastblt.runtime.sequence.stats import RunStats


@dataclass(frozen=True)
class Run:
    """Holds one measured generation."""

    prompt: int
    """Index of the prompt."""
    data: bytes
    stats: RunStats
    replay: ReplayCounts | None = None
    """What a replay really showed."""


@dataclass(frozen=True)
class BenchRow:
    """Holds the figures of one contender. The names are a contract: scripts read them from JSON."""

    backend: str
    method: str
    """As the user wrote it, e.g. ``s:8``."""
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
    """Calls of the decoder, and of the draft decoder if there is one."""
    rounds: int
    drafted: int
    accepted: int
    acceptance: float | None
    """``accepted / drafted``; null where nothing is drafted."""
    identical_to_ar: bool | None
    """Whether every run's bytes equal those of the reference (`BenchPlan.reference`) after the same prompt; null:
    replay."""
    ratio_to_ar: float | None
    """``bytes_per_s`` divided by that of the bench's backend with ``ar``; null where nothing was timed."""
    ratio_to_eager_ar: float | None
    """The same with eager ``ar``; null where that is not measured."""
    pytorch_baseline: str | None
    """The faster one of ``eager`` and ``eager-compiled`` by their ``ar``; null where neither is measured."""
    ratio_to_pytorch_ar: float | None
    """The same as ``ratio_to_ar`` with ``ar`` of ``pytorch_baseline``; null where none is measured."""
    estimated_gb: float
    """Weight traffic by the paper's formula (16-bit weights, no patcher, no caches)."""
    moved_gb: float
    """Weights, in the type they have, and cache entries that the calls read."""
    us_per_byte: dict[str, float]
    """Microseconds per new byte, prompt included, of each part and of the control flow (``host``)."""
    moved_gb_per_s: float
    """``moved_gb`` divided by all seconds; compare with the device's ``memory_gb_per_s``."""
    peak_rss_mb: float | None
    """Largest resident memory (MiB) of the *process*, all backends in it, up to this contender's last run."""
    lossless: bool
    """Whether the method promises the bytes of ``ar``."""
    agreement_with_ar: float | None
    """Part of the reference's bytes before the first difference, mean over the runs; null: replay."""
    nfe_encoder_per_512: float
    """Encoder calls per 512 new bytes."""
    nfe_global_per_512: float
    nfe_decoder_per_512: float
    estimated_gb_per_512: float
    estimated_saving: float | None
    """Part of ``ar``'s estimated traffic that is saved."""
    measured_saving: float | None
    """Part of ``ar``'s time per byte that is saved, prompt left out; null where nothing was timed."""
    limit_us_per_byte: float | None
    """Microseconds that the bytes moved take at ``limit_gb_per_s``, prompt included; null on a GPU."""
    limit_gb_per_s: float | None
    """Bandwidth of main memory, with as many threads as may be used, or one if that is faster."""
    times_limit: float | None
    """Measured time per byte divided by ``limit_us_per_byte``."""
    replay: dict[str, float | None] | None
    """For a replay, wanted and realized ``acceptance``, bytes per ``patch`` and ``steps`` per block (null: does not
    apply); null where the model's own output was measured."""
    nfe_draft: int = 0
    """Calls of the draft decoder."""


@dataclass(frozen=True)
class Measurement:
    """Holds all generations of a plan; `rows` computes the figures."""

    plan: BenchPlan
    prompts: Sequence[bytes]
    max_new_bytes: int
    repeats: int
    config: BltConfig
    devices: Mapping[str, str]
    """``cpu`` or ``cuda``, by backend."""
    runs: Mapping[Contender, Sequence[Run]]
    peaks: Mapping[Contender, float | None]
    """`peak_rss_mb` after the last run."""
    memory_gb_per_s: float | None = None
    """`memory_bandwidth` with as many threads as may be used, or one if that is faster."""
    profiles: Mapping[Contender, ReplayProfile] | None = None
    """How the contenders of a replay were driven."""

    def rows(self) -> list[BenchRow]:
        """Return one row for each contender, in the plan's order."""
        return [self._row(contender) for contender in self.plan.contenders]

    def _row(self, contender: Contender) -> BenchRow:
        runs = self.runs[contender]
        all_stats = [run.stats for run in runs]
        seconds = [second for stats in all_stats for second in stats.byte_seconds] or [0.0]
        new_bytes = sum(stats.new_bytes for stats in all_stats)
        drafted, accepted = (sum(getattr(stats, name) for stats in all_stats) for name in ("drafted", "accepted"))
        reference = self.runs[self.plan.reference(contender)]
        rate = decode_rate(runs)
        moved_gb = sum(stats.moved_bytes for stats in all_stats) / 1e9
        seconds_in_all = sum(stats.total_seconds for stats in all_stats)
        replayed = self.profiles is not None
        baseline = self.pytorch_baseline
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
            bytes_per_s_with_prompt=_ratio(new_bytes, seconds_in_all) or 0.0,
            ms_per_byte_p50=1e3 * float(np.percentile(seconds, 50)),
            ms_per_byte_p95=1e3 * float(np.percentile(seconds, 95)),
            first_byte_ms=1e3 * statistics.median(stats.first_byte_seconds for stats in all_stats),
            nfe_patcher=sum(stats.nfe["patcher"] for stats in all_stats),
            nfe_encoder=sum(stats.nfe["encoder"] for stats in all_stats),
            nfe_global=sum(stats.nfe["global"] for stats in all_stats),
            nfe_decoder=sum(stats.decoder_calls for stats in all_stats),
            nfe_draft=sum(stats.nfe["draft"] for stats in all_stats),
            rounds=sum(stats.rounds for stats in all_stats),
            drafted=drafted,
            accepted=accepted,
            acceptance=_ratio(accepted, drafted),
            identical_to_ar=None if replayed else identical(runs, reference),
            ratio_to_ar=_ratio(rate, self._ar_rate(self.plan.backend)),
            ratio_to_eager_ar=_ratio(rate, self._ar_rate(EAGER)),
            pytorch_baseline=baseline,
            ratio_to_pytorch_ar=None if baseline is None else _ratio(rate, self._ar_rate(baseline)),
            moved_gb=moved_gb,
            us_per_byte=breakdown(all_stats),
            moved_gb_per_s=_ratio(moved_gb, seconds_in_all) or 0.0,
            peak_rss_mb=self.peaks[contender],
            lossless=parse_method(contender.method).lossless,
            agreement_with_ar=None if replayed else agreement(runs, reference),
            replay=self._replay(contender),
            **self._against_estimate(contender),
            **self._against_limit(contender, moved_gb, seconds_in_all, new_bytes),
        )

    @property
    def pytorch_baseline(self) -> str | None:
        """Return the value of `BenchRow.pytorch_baseline`."""
        measured = [name for name in PYTORCH if name in self.plan.backends]
        return max(measured, key=self._ar_rate, default=None)

    def _ar_rate(self, backend: str) -> float:
        """Return the decode rate of a backend's ``ar``; 0.0 where it is not measured."""
        return decode_rate(self.runs.get(Contender(backend, AR), ()))

    def _against_estimate(self, contender: Contender) -> dict[str, Any]:
        """Return what the paper counts, for 512 bytes, and what is saved by that count and by the clock."""
        runs, ar = self.runs[contender], self.runs[Contender(contender.backend, AR)]
        all_stats = [run.stats for run in runs]
        estimated, new_bytes = self._estimated(runs), sum(stats.new_bytes for stats in all_stats)
        scale = 512 * (_ratio(1.0, new_bytes) or 0.0)
        calls = {part: sum(stats.nfe[part] for stats in all_stats) for part in ("encoder", "global")}
        calls["decoder"] = sum(stats.decoder_calls for stats in all_stats)
        return {
            **{f"nfe_{part}_per_512": scale * count for part, count in calls.items()},
            "estimated_gb": estimated,
            "estimated_gb_per_512": scale * estimated,
            "estimated_saving": _saving(_per_byte(estimated, runs), _per_byte(self._estimated(ar), ar)),
            "measured_saving": _saving(_ratio(1.0, decode_rate(runs)), _ratio(1.0, decode_rate(ar))),
        }

    def _estimated(self, runs: Sequence[Run]) -> float:
        return sum(run.stats.estimated_gb(self.config) for run in runs)

    def _against_limit(self, contender: Contender, moved_gb: float, seconds: float, new_bytes: int) -> dict[str, Any]:
        """Return the least time that the bytes moved take; it is that of main memory, so not for a GPU."""
        bandwidth = self.memory_gb_per_s if self.devices[contender.backend] == "cpu" else None
        limit = moved_gb / bandwidth if bandwidth else None
        return {
            "limit_us_per_byte": None if limit is None else 1e6 * limit / max(1, new_bytes),
            "limit_gb_per_s": bandwidth,
            "times_limit": None if limit is None else _ratio(seconds, limit),
        }

    def _replay(self, contender: Contender) -> dict[str, float | None] | None:
        """Return the value of `BenchRow.replay`."""
        if self.profiles is None:
            return None
        profile, counts, runs = self.profiles[contender], ReplayCounts(), self.runs[contender]
        for run in runs:
            counts.add(run.replay or ReplayCounts())
        drafted = sum(run.stats.drafted for run in runs)
        return {
            "wanted_acceptance": profile.acceptance,
            "acceptance": _ratio(sum(run.stats.accepted for run in runs), drafted),
            "wanted_patch": profile.patch,
            "patch": _ratio(counts.patch_bytes, counts.patches),
            "wanted_steps": profile.steps,
            "steps": _ratio(counts.steps, counts.blocks),
        }


def decode_rate(runs: Sequence[Run]) -> float:
    """Return the bytes after the first of each run divided by the seconds after the first byte; 0.0 without bytes."""
    later = [run.stats for run in runs if run.stats.new_bytes > 1]
    seconds = sum(stats.total_seconds - stats.first_byte_seconds for stats in later)
    return _ratio(sum(stats.new_bytes - 1 for stats in later), seconds) or 0.0


def identical(runs: Sequence[Run], reference: Sequence[Run]) -> bool:
    """Return whether every run's bytes equal the bytes of the reference's first run after the same prompt."""
    expected = _first_texts(reference)
    return all(run.data == expected[run.prompt] for run in runs)


def agreement(runs: Sequence[Run], reference: Sequence[Run]) -> float:
    """Return the mean part of the reference's bytes (its first run after the same prompt) before a run first differs.

    Positions after the first difference are not compared: two texts that went apart agree there by chance only.
    """
    expected = _first_texts(reference)
    return statistics.fmean(_same_part(run.data, expected[run.prompt]) for run in runs)


def _first_texts(runs: Sequence[Run]) -> dict[int, bytes]:
    """Return the text of each prompt's first run."""
    return {run.prompt: run.data for run in reversed(runs)}


def _same_part(data: bytes, reference: bytes) -> float:
    """Return the part of the reference before the first difference; of an empty one, whether ``data`` is empty too."""
    return common_prefix(data, reference) / len(reference) if reference else float(not data)


def _per_byte(total: float, runs: Sequence[Run]) -> float | None:
    return _ratio(total, sum(run.stats.new_bytes for run in runs))


def _saving(cost: float | None, reference: float | None) -> float | None:
    """Return the part of the reference's cost that is not needed."""
    return None if cost is None or not reference else 1 - cost / reference


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def breakdown(all_stats: Sequence[RunStats]) -> dict[str, float]:
    """Return the microseconds per new byte of each part and of everything outside the backend (``host``)."""
    count = max(1, sum(stats.new_bytes for stats in all_stats))
    counted = parts_in({"draft": sum(stats.nfe["draft"] for stats in all_stats)})
    parts = {part: sum(stats.part_seconds[part] for stats in all_stats) for part in counted}
    parts["host"] = sum(stats.total_seconds for stats in all_stats) - sum(parts.values())
    return {part: 1e6 * seconds / count for part, seconds in parts.items()}
