"""A machine whose clock moves only while something generates, by a script: nothing depends on how busy this one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fastblt.models.config import BltConfig
from fastblt.models.presets import preset
from fastblt.runtime.generation import Generation
from fastblt.runtime.sequence.stats import RunStats


@dataclass(frozen=True)
class Call:
    """One generation."""

    bundle: str
    threads: int | None
    method: str
    prompt: bytes
    new_bytes: int


@dataclass
class ScriptedMachine:
    """Generates at given speeds; ``pace(bundle, threads, method)`` returns seconds per byte."""

    pace: Callable[[str, int | None, str], float]
    device: str = "cpu"
    loading: float = 0.0
    """Seconds that loading takes."""
    now: float = 100.0
    calls: list[Call] = field(default_factory=list)
    loads: list[tuple[str, int | None]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def load(self, bundle: Path, threads: int | None) -> ScriptedRuntime:
        self.now += self.loading
        self.loads.append((bundle.name, threads))
        return ScriptedRuntime(self, bundle.name, threads)


@dataclass
class ScriptedRuntime:
    """A bundle, loaded on a scripted machine; the prompt takes as long as ten bytes."""

    machine: ScriptedMachine
    bundle: str
    threads: int | None

    @property
    def config(self) -> BltConfig:
        return preset("tiny")

    @property
    def device(self) -> str:
        return self.machine.device

    def generate(self, prompt: bytes, max_new_bytes: int, *, method: str, stop_at_eos: bool) -> Generation:
        assert not stop_at_eos, "all texts have to be equally long"
        each = self.machine.pace(self.bundle, self.threads, method)
        first, later = 10 * each, (max_new_bytes - 1) * each
        self.machine.now += first + later
        self.machine.calls.append(Call(self.bundle, self.threads, method, prompt, max_new_bytes))
        stats = RunStats(new_bytes=max_new_bytes, first_byte_seconds=first, total_seconds=first + later)
        return Generation(b"x" * max_new_bytes, "length", stats, ())
