"""Measures contenders x numbers of texts, with calls shared and in turn, alternately in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.batching.kept_scheduler import KeptScheduler
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.bench.plan import BenchPlan, Contender
from fastblt.runtime.measure.bench.streams.growth import Growth, grow, grow_in_peer
from fastblt.runtime.measure.bench.streams.rows import Compared, StreamsRow
from fastblt.runtime.measure.bench.timing import replayed
from fastblt.runtime.measure.peers import BatchGenerator, Generator
from fastblt.runtime.measure.replay.backend import ReplayBackend
from fastblt.runtime.measure.replay.lent import Lent
from fastblt.runtime.measure.rotation import rotated
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.replay_profile import ReplayProfile
from fastblt.runtime.progress import OnProgress, no_progress

#: New bytes of each text in the unmeasured first run of a unit.
_WARM_UP_BYTES = 24


@dataclass(frozen=True)
class _Unit:
    """Names what is measured in one go."""

    contender: Contender
    streams: int
    shared: bool
    """Whether calls are shared."""

    def __str__(self) -> str:
        return f"{self.contender}, {self.streams} {'together' if self.shared else 'in turn'}"


class StreamsMeasurement:
    """Lets texts grow, and keeps what was measured.

    Args:
        runtimes: loaded, by name of backend or peer, each with room for the most texts.
        plan: what to measure.
        streams: numbers of texts.
        prompts: at least one; texts take them in turn.
        max_new_bytes: bytes of each text.
        weights: bytes of each part's weights, where texts can share calls.
        profiles: how to replay the contenders; None: the model's own output is measured.

    Raises:
        CapacityError: there is no memory for the batches.
        MethodError: the model cannot run a method.
        ReplayError: a peer is to be replayed.
    """

    def __init__(
        self,
        runtimes: Mapping[str, Generator],
        plan: BenchPlan,
        streams: Sequence[int],
        prompts: Sequence[bytes],
        max_new_bytes: int,
        weights: Mapping[str, float],
        profiles: Mapping[Contender, ReplayProfile] | None = None,
    ) -> None:
        for contender in plan.contenders:
            parse_method(contender.method).check(runtimes[contender.backend].config)
        self._runtimes, self._plan, self._streams = runtimes, plan, streams
        self._prompts, self._max_new_bytes = prompts, max_new_bytes
        self._weights, self._profiles = weights, profiles
        self._alone_because = {name: _alone_because(runtime, max(streams)) for name, runtime in runtimes.items()}
        self._units = [
            _Unit(contender, count, shared)
            for contender in plan.contenders
            for count in streams
            for shared in self._ways(contender, count)
        ]
        self._lent: dict[str, Lent] = {}
        self._replays: dict[_Unit, BltRuntime] = {}
        if profiles is not None:
            for unit in self._units:
                runtime = runtimes[unit.contender.backend]
                self._replays[unit] = replayed(runtime, profiles[unit.contender], self._lent)
        self._kept: dict[Backend, KeptScheduler] = {}
        """Lends the batch of the backend that was measured last, as a server keeps one: it takes time to be made.
        Replays over one backend share a batch."""
        self._learned: dict[_Unit, dict[type[object], object]] = {unit: {} for unit in self._units}
        self._grown: dict[_Unit, list[Growth]] = {unit: [] for unit in self._units}

    def _ways(self, contender: Contender, streams: int) -> tuple[bool, ...]:
        """Return whether to measure with calls shared, and in turn; a peer's batch is measured only as that."""
        if not isinstance(self._runtimes[contender.backend], BltRuntime):
            return (True,)
        return (True, False) if streams > 1 and not self._alone_because[contender.backend] else (False,)

    def measure(self, repeats: int = 1, on_progress: OnProgress = no_progress) -> list[StreamsRow]:
        """Measure everything ``repeats`` times, after one unmeasured run of each unit, and return the figures.

        Args:
            repeats: how often.
            on_progress: called after each run, unmeasured ones included.
        """
        try:
            return self._measure(repeats, on_progress)
        finally:
            self._close_batches()

    def _measure(self, repeats: int, on_progress: OnProgress) -> list[StreamsRow]:
        done, total = 0, len(self._units) * (1 + repeats)
        on_progress(done, total, "")
        for turn in range(-1, repeats):
            for unit in rotated(self._units, turn % len(self._units)):
                grown = self._grow(unit, max(0, turn), _WARM_UP_BYTES if turn < 0 else self._max_new_bytes)
                if turn >= 0:
                    self._grown[unit].append(grown)
                done += 1
                on_progress(done, total, str(unit))
        return self._rows()

    def _grow(self, unit: _Unit, turn: int, max_new_bytes: int) -> Growth:
        prompts = [self._prompts[(turn * unit.streams + i) % len(self._prompts)] for i in range(unit.streams)]
        max_new_bytes = min(max_new_bytes, self._max_new_bytes)
        runtime = self._replays.get(unit, self._runtimes[unit.contender.backend])
        if not isinstance(runtime, BltRuntime):
            assert isinstance(runtime, BatchGenerator), "a peer that generates batches"
            return grow_in_peer(runtime, prompts, max_new_bytes)
        # What adaptive decoding learns about calls that are shared is wrong for calls that are not.
        with runtime.session() as session:
            learned = session.learned
        before = learned.exchange(self._learned[unit])
        try:
            grown = self._grow_by(runtime, unit, prompts, max_new_bytes)
        finally:
            self._learned[unit] = learned.exchange(before)
        backend = runtime.backend
        grown.replay = backend.take_counts() if isinstance(backend, ReplayBackend) else None
        return grown

    def _grow_by(self, runtime: BltRuntime, unit: _Unit, prompts: Sequence[bytes], max_new_bytes: int) -> Growth:
        method, backend = unit.contender.method, runtime.backend
        if not unit.shared:
            return grow(runtime, RoundScheduler(backend, len(prompts), slots=1), prompts, max_new_bytes, method)
        cold = backend not in self._kept
        if cold:  # there may be no memory for two batches
            self._close_batches(backend)
            self._kept[backend] = KeptScheduler(backend)
        with self._kept[backend].lend(max(self._streams)) as scheduler:
            if cold and not isinstance(backend, ReplayBackend):  # whose draws would go on from here
                grow(runtime, scheduler, prompts, min(max_new_bytes, _WARM_UP_BYTES), method)
            return grow(runtime, scheduler, prompts, max_new_bytes, method)

    def _close_batches(self, wanted: Backend | None = None) -> None:
        """Let go of all batches but what a replay that is wanted next shares with others."""
        while self._kept:
            self._kept.popitem()[1].close()
        real = wanted.real if isinstance(wanted, ReplayBackend) else None
        for lent in self._lent.values():
            if lent.real is not real:
                lent.close_batch()

    def _rows(self) -> list[StreamsRow]:
        compared = [self._compared(contender, count) for contender in self._plan.contenders for count in self._streams]
        peers = {
            each.streams: each.rate
            for each in reversed(compared)
            if not isinstance(self._runtimes[each.contender.backend], BltRuntime)
        }
        return [each.row(peers.get(each.streams)) for each in compared]

    def _compared(self, contender: Contender, count: int) -> Compared:
        together, in_turn = _Unit(contender, count, True), _Unit(contender, count, False)
        runtime = self._runtimes[contender.backend]
        shared = together in self._grown
        return Compared(
            contender,
            runtime.device,
            count,
            shared,
            None if shared or count == 1 else self._alone_because[contender.backend],
            self._grown[together if shared else in_turn],
            self._grown.get(in_turn, []) if shared else [],
            self._weights,
            None if self._profiles is None else self._profiles[contender],
        )


def _alone_because(runtime: Generator, streams: int) -> str:
    """Return why texts share no calls; empty: they do."""
    if not isinstance(runtime, BltRuntime):
        return ""
    scheduler = RoundScheduler(runtime.backend, streams)
    try:
        return scheduler.alone_because
    finally:
        scheduler.close()
