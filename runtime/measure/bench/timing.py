"""Measures prompts x methods x backends alternately in one process, and compares their output.

For every prompt all contenders run in turn, and the order is rotated from prompt to prompt, so that the drift
of a noisy machine meets all of them alike. What is measured is greedy decoding to a fixed number of bytes
(fewer where the model ends the document).

What the figures mean: `fastblt.runtime.measure.bench.rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import memory_bandwidth, peak_rss_mb, usable_cores
from fastblt.runtime.measure.bench.plan import BenchPlan, Contender
from fastblt.runtime.measure.bench.rows import Measurement, Run
from fastblt.runtime.measure.peers import Generator
from fastblt.runtime.measure.replay.backend import ReplayBackend, replay_over
from fastblt.runtime.measure.replay.lent import Lent
from fastblt.runtime.measure.rotation import rotated
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.replay_profile import ReplayError, ReplayProfile
from fastblt.runtime.progress import OnProgress, no_progress

#: New bytes of the unmeasured first run of a contender: enough rounds to settle buffers and caches.
WARM_UP_BYTES = 48


def measure(
    runtimes: Mapping[str, Generator],
    plan: BenchPlan,
    prompts: Sequence[bytes],
    max_new_bytes: int,
    repeats: int = 1,
    on_progress: OnProgress = no_progress,
    profiles: Mapping[Contender, ReplayProfile] | None = None,
    threads: int | None = None,
) -> Measurement:
    """Measure all contenders of a plan, after one unmeasured run of each.

    Args:
        runtimes: loaded, by name of backend or peer.
        plan: what to measure, from `make_bench_plan`.
        prompts: at least one.
        max_new_bytes: bytes to generate after each prompt; at least 2, or nothing is left of the decode rate.
        repeats: how often each prompt is measured.
        on_progress: called after each run, unmeasured ones included.
        profiles: how to replay the contenders; None: the model's own output is measured.
        threads: of the runtimes, to measure the memory's bandwidth with as many; None: all cores.

    Raises:
        CapacityError: a prompt and its new bytes do not fit a runtime.
        MethodError: the model cannot run a method; nothing has been measured then.
        ValueError: nothing to measure.
    """
    if not prompts or max_new_bytes < 2 or repeats < 1:
        raise ValueError(
            f"bench: found {len(prompts)} prompts, max_new_bytes={max_new_bytes}, repeats={repeats}, "
            "expected at least 1, 2 and 1"
        )

    for contender in plan.contenders:
        parse_method(contender.method).check(runtimes[contender.backend].config)
    lent: dict[str, Lent] = {}
    runtime_of = {
        c: replayed(runtimes[c.backend], profiles[c], lent) if profiles else runtimes[c.backend]
        for c in plan.contenders
    }

    done, total = 0, len(plan.contenders) * (1 + repeats * len(prompts))
    on_progress(done, total, "")

    def run(contender: Contender, index: int, count: int) -> Run:
        runtime = runtime_of[contender]
        generation = runtime.generate(prompts[index], count, method=contender.method)
        nonlocal done
        done += 1
        on_progress(done, total, str(contender))
        replayed = runtime.backend if isinstance(runtime, BltRuntime) else None
        counts = replayed.take_counts() if isinstance(replayed, ReplayBackend) else None
        return Run(index, generation.data, generation.stats, counts)

    for contender in plan.contenders:
        run(contender, 0, min(max_new_bytes, WARM_UP_BYTES))
    runs: dict[Contender, list[Run]] = {contender: [] for contender in plan.contenders}
    peaks: dict[Contender, float | None] = {}
    for turn in range(repeats * len(prompts)):
        for contender in rotated(plan.contenders, turn):
            runs[contender].append(run(contender, turn % len(prompts), max_new_bytes))
            peaks[contender] = peak_rss_mb()
    devices = {name: runtime.device for name, runtime in runtimes.items()}
    config = runtimes[plan.backend].config
    bandwidth = max(memory_bandwidth(threads=count) for count in {1, threads or usable_cores()})
    return Measurement(plan, prompts, max_new_bytes, repeats, config, devices, runs, peaks, bandwidth, profiles)


def replayed(runtime: Generator, profile: ReplayProfile, lent: dict[str, Lent]) -> BltRuntime:
    """Return a runtime that replays over the backend of another one.

    Args:
        runtime: the other one.
        profile: the rates.
        lent: what the replays over each backend share, by its name; what is missing is added.

    Raises:
        ReplayError: a peer is to be replayed.
    """
    if not isinstance(runtime, BltRuntime):
        raise ReplayError(
            "replay: found a peer among the contenders, expected backends only: a peer's answers cannot be replaced"
        )
    backend = runtime.backend
    return BltRuntime(replay_over(backend, profile, lent.setdefault(backend.name, Lent(backend))), reuse_prompts=False)
