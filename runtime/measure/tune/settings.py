"""Names what ``fastblt tune`` compares: bundles, numbers of threads and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastblt.models.machine_memory import host_memory
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.machine import default_threads, usable_cores
from fastblt.runtime.request import GenerationRequest

#: Method of commands that are given none.
DEFAULT_METHOD = GenerationRequest().decoding_method().name
#: Part of the machine's memory that copies of weights may take, each loaded for another number of threads.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Engine:
    """Names a bundle that is loaded for a number of threads; each is loaded once, for all methods."""

    bundle: Path
    threads: int | None
    """None: on a GPU."""


@dataclass(frozen=True)
class Setting:
    """Names a method on an engine: what is measured."""

    engine: Engine
    method: str

    def __str__(self) -> str:
        threads = "" if self.engine.threads is None else f", threads {self.engine.threads}"
        return f"{self.engine.bundle.name}/{self.method}{threads}"


def thread_counts(bundle: Path, wanted: Sequence[int] | None, bundles: int) -> tuple[int, ...]:
    """Return the numbers of threads to try on a CPU, the default one first.

    They are powers of two up to the number of cores, and that number; fewer where the copies of the weights would take
    more than half of the memory.

    Args:
        bundle: whose default comes first, asked for or not: everything is compared with it.
        wanted: numbers that the user asks for; None: as above.
        bundles: how many are tuned at the same time.
    """
    weights, memory = load_manifest(bundle).weight_bytes, host_memory()
    default = default_threads(weights)
    if wanted is not None:
        return tuple(dict.fromkeys([default, *wanted]))
    cores = usable_cores()
    counts = dict.fromkeys([default, cores, *(2**power for power in range(cores.bit_length() - 1, -1, -1))])
    copies = len(counts) if memory is None else int(_MEMORY_SHARE * memory / max(1, weights * bundles))
    return tuple(counts)[: max(1, copies)]


def settings_of(engines: Sequence[Engine], methods: Mapping[Path, Sequence[str]]) -> list[Setting]:
    """Return every method on every engine, the default method of each engine first, then by method.

    Args:
        engines: the most important ones first.
        methods: names by bundle.
    """
    names = dict.fromkeys(name for engine in engines for name in (DEFAULT_METHOD, *methods[engine.bundle]))
    return [
        Setting(engine, name)
        for name in names
        for engine in engines
        if name == DEFAULT_METHOD or name in methods[engine.bundle]
    ]
