"""Generates for as long as there is time, in one process: its memory, descriptors and threads stay as they are."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from campaign.part import Counts, Limits, Place, failed
from campaign.random_models import MODELS, prepare_models, random_prompt

from fastblt.runtime.blt_runtime import BltRuntime

_MAX_BYTES = 1024
_NEW_BYTES = 64
_LENGTHS = (0, 1, 15, 64, 250, 900)
#: What stays loaded, and what is loaded and dropped again in every lap.
_KEPT, _RELOADED = ("blt-d", "blt"), ("blt-d", "documents", "space", "quantized")
_METHODS = ("ar", "s:1", "s:4", "s:16", "s:8+partial", "dv:4@0.3", "dv:2@one", "d:4@0.7", "auto")
#: Share of the laps that are warm-up, and the least number of laps after which memory can be judged.
_WARM_UP, _LEAST_LAPS = 0.25, 8
#: Largest growth of resident memory between the first and the last third of the laps after warm-up.
GROWTH = 0.02


@dataclass
class _Samples:
    """Holds what was measured after each lap."""

    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self) -> None:
        """Measure, after giving back to the system what is free."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.resident.append(resident_bytes())
        self.descriptors.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(len(os.listdir("/proc/self/task")))

    def warm(self, values: list[int]) -> list[int]:
        """Return the values after warm-up."""
        return values[int(_WARM_UP * len(values)) :]


class Soak:
    """Repeats the same lap with other prompts: all methods, lengths, streams left half-way, scores, loads."""

    name = "soak"
    summary = "generation without end in one process: memory, descriptors and threads stay constant"
    weight = 2.0
    limits = Limits(processor_seconds=36_000.0, wall_seconds=36_000.0, memory_bytes=16 * 2**30)
    at_once = True

    def prepare(self, fixtures: Path) -> None:
        """Make a bundle of every kind."""
        prepare_models(fixtures)

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Run laps for ``seconds``."""
        end = time.monotonic() + seconds
        place.announce({"soak": seconds})
        kept = [_load(place.fixtures, name) for name in _KEPT]
        samples = _Samples()
        total = Counts()
        longest = 0.0
        while time.monotonic() + longest < end or len(samples.resident) < 2:
            begin = time.monotonic()
            for runtime in kept:
                total.add(_lap(rng, runtime, _LENGTHS))
            for name in _RELOADED:
                total.add(_lap(rng, _load(place.fixtures, name), _LENGTHS[:2]))
            samples.take()
            longest = max(longest, time.monotonic() - begin)
        total.add(_judge(samples))
        return total


def resident_bytes() -> int:
    """Return the resident memory of this process; what it shares counts whole, so that others do not change it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _load(fixtures: Path, name: str) -> BltRuntime:
    bundle = fixtures / MODELS / name / "bundle"
    # A few places, which the first lap fills: memory that grows afterwards is a leak.
    return BltRuntime.from_pretrained(bundle, provider="cpu", max_bytes=_MAX_BYTES, threads=1, sequences=4)


def _lap(rng: random.Random, runtime: BltRuntime, lengths: tuple[int, ...]) -> Counts:
    """Write after a prompt of every length with every method, and whatever else a runtime is used for."""
    written = 0
    methods = [name for name in _METHODS if runtime.config.block_size or name[0] != "d"]
    for length in lengths:
        for method in methods:
            prompt = rng.randbytes(length)
            written += len(runtime.generate(prompt, _NEW_BYTES, method=method, stop_at_eos=False).data)
        found = runtime.generate(random_prompt(rng, length), _NEW_BYTES, method="auto", stop=[b"a", b"\xff\xfe"])
        written += len(found.data)
        sampled = runtime.generate(rng.randbytes(length), _NEW_BYTES, temperature=1.0, seed=rng.randrange(100))
        written += len(sampled.data)
        runtime.score(rng.randbytes(length), rng.randbytes(40))
        with runtime.stream(rng.randbytes(length), _NEW_BYTES, method="s:8", stop_at_eos=False) as stream:
            for chunk in stream:
                written += len(chunk.data)
                if rng.random() < 0.2:
                    break
    return Counts(
        tries=len(lengths) * (len(methods) + 4), ok=len(lengths) * (len(methods) + 4), figures={"bytes": written}
    )


def _judge(samples: _Samples) -> Counts:
    """Compare what was measured after warm-up."""
    figures = {
        "laps": float(len(samples.resident)),
        "max resident MB": max(samples.resident) / 1e6,
        "max descriptors": float(max(samples.descriptors)),
        "max threads": float(max(samples.threads)),
    }
    counts = Counts(figures=figures)
    detail = f"{[round(value / 1e6, 1) for value in samples.resident]}\n{samples.descriptors}\n{samples.threads}"
    for what, values in (("descriptors", samples.descriptors), ("threads", samples.threads)):
        warm = samples.warm(values)
        if max(warm) > warm[0]:
            counts.add(failed("other", f"soak: {what} grow after warm-up", detail))
    if len(samples.resident) < _LEAST_LAPS:
        figures["laps too few to judge memory"] = 1.0
        return counts
    # Medians: one lap that happens to need more, or less, is neither growth nor a baseline.
    warm = samples.warm(samples.resident)
    third = len(warm) // 3
    growth = median(warm[-third:]) / median(warm[:third]) - 1
    figures["max growth of resident memory after warm-up, %"] = 100 * growth
    if growth > GROWTH:
        counts.add(failed("other", "soak: resident memory grows after warm-up", detail))
    return counts
