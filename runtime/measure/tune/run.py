"""Finds the fastest method, number of threads and bundle within a time budget.

Two races (`fastblt.runtime.measure.tune.race`): numbers of threads with the default method, in a quarter of the time at
most; then every method with the default number of threads and, unless it is clearly slower, the best other one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.registry import DEFAULT_BACKEND, default_capacity
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Generation
from fastblt.runtime.measure.requests import require_at_least
from fastblt.runtime.measure.tune.profile import BundleKey, Profile
from fastblt.runtime.measure.tune.race import Race, Standing
from fastblt.runtime.measure.tune.settings import DEFAULT_METHOD, Engine, Setting, settings_of, thread_counts
from fastblt.runtime.methods import MethodError, parse_method
from fastblt.runtime.methods.registry import tune_methods
from fastblt.runtime.progress import OnProgress, no_progress
from fastblt.runtime.request import GenerationRequest

#: New bytes of a measurement, fewest and most; between them so many that all settings can be measured in a part of the
#: time budget. The most is as long as a text is by default: drafts of what has been written before pay late in a text.
_FEWEST_BYTES, MOST_BYTES, _ROUND_SHARE = 16, GenerationRequest.max_new_bytes, 1 / 12
#: Engines of a bundle in the last race, and part of the time that choosing them may take.
_ENGINES, _ENGINES_SHARE = 2, 0.25


class Generator(Protocol):
    """Generates text after a prompt, and counts the seconds."""

    @property
    def config(self) -> BltConfig:
        """Return the model's configuration."""
        ...

    @property
    def device(self) -> str:
        """Return ``cpu`` or ``cuda``."""
        ...

    def generate(self, prompt: bytes, max_new_bytes: int, *, method: str, stop_at_eos: bool) -> Generation:
        """Generate greedily after a prompt."""
        ...


#: Loads a bundle for a number of threads (None: the backend's choice).
Load = Callable[[Path, int | None], Generator]


@dataclass(frozen=True)
class TuneRequest:
    """Specifies what is tuned, and for how long.

    Raises:
        MethodError: a method does not exist, or is not lossless although only such methods are allowed.
        ValueError: a number is out of range.
    """

    seconds: float = 60.0
    """Time budget, loading included."""
    against: tuple[Path, ...] = ()
    """Other bundles of the model, e.g. quantized ones."""
    methods: tuple[str, ...] | None = None
    """To compare, besides the default one; None: those that the registry lists."""
    threads: tuple[int, ...] | None = None
    """Numbers of threads to compare, besides the default one; None: see `thread_counts`."""
    allow_lossy: bool = False
    """Whether methods, and bundles of ``against``, may be chosen that change the text."""
    backend: str = DEFAULT_BACKEND
    provider: str = "auto"
    max_new_bytes: int = MOST_BYTES
    """Most new bytes of a measurement."""

    def __post_init__(self) -> None:
        """Check numbers and methods."""
        require_at_least(1, **{f"threads[{index}]": count for index, count in enumerate(self.threads or ())})
        require_at_least(_FEWEST_BYTES, max_new_bytes=self.max_new_bytes)
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds: found {self.seconds}, expected a number greater than 0")
        for name in self.methods or ():
            if not parse_method(name).lossless and not self.allow_lossy:
                raise MethodError(f"method {name!r}: found one that is not lossless, expected --allow-lossy with it")


@dataclass(frozen=True)
class TuneReport:
    """Holds what was found."""

    standings: list[Standing[Setting]]
    """Of the last race: by bundle (with ``allow_lossy`` all together), the fastest first."""
    defaults: dict[Setting, float]
    """By winner, its speed divided by that of the default method and threads of its bundle, or of the tuned one."""
    rounds: int
    new_bytes: int
    """Of each measurement."""
    settings: int
    """Compared in the last race."""
    seconds: float
    """That all of it took."""

    @property
    def winners(self) -> list[Standing[Setting]]:
        """Return the fastest setting of each bundle; with ``allow_lossy`` of all."""
        return [each for each in self.standings if each.contender in self.defaults]


class _Tuning:
    """Holds the engines that are loaded, and measures."""

    def __init__(self, load: Load, prompts: Sequence[bytes]) -> None:
        self._load, self._prompts = load, prompts
        self._loaded: dict[Engine, Generator] = {}
        self._warm: set[Setting] = set()
        self.new_bytes = _FEWEST_BYTES

    def runtime(self, engine: Engine) -> Generator:
        """Return an engine, loaded the first time."""
        if engine not in self._loaded:
            self._loaded[engine] = self._load(engine.bundle, engine.threads)
        return self._loaded[engine]

    def default_engine(self, engine: Engine) -> Engine:
        """Return an engine as it is named once it is loaded: the number of threads does not matter on a GPU."""
        if self.runtime(engine).device == "cpu":
            return engine
        found = Engine(engine.bundle, None)
        self._loaded[found] = self._loaded.pop(engine)
        return found

    def keep(self, engines: Sequence[Engine]) -> None:
        """Drop all other engines."""
        self._loaded = {engine: runtime for engine, runtime in self._loaded.items() if engine in engines}

    def size_for(self, settings: Sequence[Setting], seconds: float, most: int) -> None:
        """Choose the new bytes of a measurement, so that a round takes a small part of so many seconds."""
        self._generate(settings[0], 0, _FEWEST_BYTES)
        pace = self._generate(settings[0], 0, _FEWEST_BYTES)
        self.new_bytes = int(min(most, max(_FEWEST_BYTES, _ROUND_SHARE * seconds / (len(settings) * pace))))

    def measure(self, setting: Setting, turn: int) -> float:
        """Return the seconds per byte of a setting after the prompt of a round, the prompt left out.

        Before the first measurement it generates a whole text: `auto` is measured with what it has learned.
        """
        if setting not in self._warm:
            self._generate(setting, turn, self.new_bytes)
            self._warm.add(setting)
        return self._generate(setting, turn, self.new_bytes)

    def _generate(self, setting: Setting, turn: int, count: int) -> float:
        prompt = self._prompts[turn % len(self._prompts)]
        stats = self.runtime(setting.engine).generate(prompt, count, method=setting.method, stop_at_eos=False).stats
        return max(1e-9, stats.total_seconds - stats.first_byte_seconds) / max(1, stats.new_bytes - 1)


def run_tune(
    bundle: Path,
    request: TuneRequest,
    prompts: Sequence[bytes],
    on_progress: OnProgress = no_progress,
    *,
    load: Load | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneReport:
    """Compare methods, numbers of threads and bundles on a user's prompts, greedily.

    Args:
        bundle: to tune.
        request: what to compare.
        prompts: at least one.
        on_progress: called with seconds, between rounds.
        load: loads a bundle; None: the backend of the request does.
        clock: returns seconds.

    Raises:
        BundleError: a bundle cannot be used.
        CapacityError: there is too little memory for the longest prompt.
        MethodError: the model cannot run a method.
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("prompts: found none, expected at least one")
    began = clock()
    tuning = _Tuning(load or partial(_load, request, max(map(len, prompts)) + request.max_new_bytes), prompts)

    def race(settings: Sequence[Setting], seconds: float) -> Race[Setting]:
        found = Race(settings, lambda setting: _group(request, setting.engine))
        tuning.size_for(settings, seconds, request.max_new_bytes)

        def report() -> None:
            spent = min(int(clock() - began), int(request.seconds))
            on_progress(spent, int(request.seconds), f"{len(found.left)} of {len(settings)} left")

        report()
        found.run(tuning.measure, began + seconds, clock, report)
        return found

    bundles = list(dict.fromkeys([bundle, *request.against]))
    engines = _engines(bundles, request, tuning)
    methods = {each: _methods(each, request, tuning, engines) for each in bundles}
    if len(engines) > len(bundles):
        first = race([Setting(engine, DEFAULT_METHOD) for engine in engines], _ENGINES_SHARE * request.seconds)
        engines = _best_engines(engines, bundles, first)
        tuning.keep(engines)
    settings = settings_of(engines, methods)
    last = race(settings, request.seconds)
    baselines = {_group(request, engine): Setting(engine, DEFAULT_METHOD) for engine in reversed(engines)}
    winners = {each: 1 / last.ratio(each, baselines[group]) for group, each in last.leaders().items()}
    return TuneReport(last.standings(), winners, last.rounds, tuning.new_bytes, len(settings), clock() - began)


def _load(request: TuneRequest, needed: int, bundle: Path, threads: int | None) -> BltRuntime:
    return BltRuntime.from_pretrained(
        bundle,
        provider=request.provider,
        backend=request.backend,
        max_bytes=default_capacity(request.backend, needed),
        threads=threads,
        sequences=1,
        reuse_prompts=False,  # what is repeated is measured as if it came for the first time
    )


def _group(request: TuneRequest, engine: Engine) -> Hashable:
    """Return what an engine's settings are compared within: all, or only those that write the same text."""
    return None if request.allow_lossy else engine.bundle


def _engines(bundles: Sequence[Path], request: TuneRequest, tuning: _Tuning) -> list[Engine]:
    """Return each bundle with each number of threads, the default one first; on a GPU it does not matter."""
    found = []
    for bundle in bundles:
        first, *others = (Engine(bundle, count) for count in thread_counts(bundle, request.threads, len(bundles)))
        default = tuning.default_engine(first)
        found += [default] if default.threads is None else [default, *others]
    return found


def _best_engines(engines: Sequence[Engine], bundles: Sequence[Path], race: Race[Setting]) -> list[Engine]:
    """Return the default engine of each bundle, then its fastest other one, unless that is clearly slower."""
    ranks = {each.contender.engine: rank for rank, each in enumerate(race.standings()) if not each.dropped}
    kept = []
    for bundle in bundles:
        default, *others = (engine for engine in engines if engine.bundle == bundle)
        measured = sorted((engine for engine in others if engine in ranks), key=ranks.__getitem__)
        kept += [default, *measured[: _ENGINES - 1]]
    return kept


def _methods(bundle: Path, request: TuneRequest, tuning: _Tuning, engines: Sequence[Engine]) -> Sequence[str]:
    config = tuning.runtime(next(engine for engine in engines if engine.bundle == bundle)).config
    if request.methods is None:
        return tune_methods(config, allow_lossy=request.allow_lossy)
    for name in request.methods:
        parse_method(name).check(config)
    return request.methods


def profiles(bundle: Path, request: TuneRequest, report: TuneReport, prompts: int) -> list[Profile]:
    """Return the profile of each bundle that was measured; with ``allow_lossy`` that of the tuned one.

    Args:
        bundle: that was tuned.
        request: what was compared.
        report: what was found.
        prompts: number of prompts.

    Raises:
        BundleError: a bundle is gone.
    """
    from fastblt import __version__

    found = []
    for winner in report.winners:
        engine = winner.contender.engine
        own = BundleKey.of(engine.bundle)
        tuned = BundleKey.of(bundle) if request.allow_lossy else own
        found.append(
            Profile(
                bundle=tuned,
                backend=request.backend,
                provider=request.provider,
                method=winner.contender.method,
                threads=engine.threads,
                allow_lossy=request.allow_lossy,
                bytes_per_s=1 / winner.seconds_per_byte,
                times_default=report.defaults[winner.contender],
                prompts=prompts,
                version=__version__,
                runs=None if own == tuned else own,
            )
        )
    return found
