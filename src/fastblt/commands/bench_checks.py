"""Checks what is to be benchmarked, for every command that does it, before anything is loaded."""

from __future__ import annotations

from fastblt.commands.checks import check_backend
from fastblt.runtime.measure.bench.plan import make_bench_plan
from fastblt.runtime.measure.bench.run import BenchRequest
from fastblt.runtime.measure.peers import PEERS
from fastblt.runtime.measure.replay.rates import ReplayRates


def check_bench(request: BenchRequest) -> None:
    """Check methods, backends and the replay of a request.

    Raises:
        UsageError: there is no such backend.
        ValueError: a method, an opponent or a rate is none; the message names it.
    """
    plan = make_bench_plan(request.backend, request.methods, request.against)
    for name in plan.backends:
        check_backend(None if name in PEERS else name)
    if request.replay is not None:
        ReplayRates.parse(request.replay, plan.methods)
