"""Sequences of one model learn together: whatever their threads observe at the same time counts, once."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.adaptive import policy as policy_module
from fastblt.runtime.methods.adaptive.estimates import Acceptance, LinearCost, Pace
from fastblt.runtime.methods.adaptive.policy import Policy
from fastblt.runtime.methods.method import Round
from fastblt.runtime.methods.prompt_lookup import History
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.requests import ScoreRequest, Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

THREADS = 4
TIMES = 500


@pytest.fixture
def together() -> Iterator[Callable[[Callable[[], object]], None]]:
    """``together(work)``: does it `TIMES` times on each of `THREADS` threads, which take turns as often as they can."""

    def repeat(work: Callable[[], object]) -> None:
        for _ in range(TIMES):
            work()

    def run(work: Callable[[], object]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(repeat, work) for _ in range(THREADS)]:
                done.result()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield run
    sys.setswitchinterval(interval)


class Interrupted(int):
    """A number of rows: when it is first multiplied by another number, another thread gets its turn."""

    other_thread: threading.Thread

    def __mul__(self, other: float) -> float:
        if self.other_thread.ident is None:
            self.other_thread.start()
            self.other_thread.join(0.05)  # it waits for this one where it has to
        return int(self) * other


def test_an_observation_waits_for_the_one_in_progress() -> None:
    cost, expected = LinearCost(forget=0.0), LinearCost(forget=0.0)
    rows = Interrupted(2)
    rows.other_thread = threading.Thread(target=cost.observe, args=(4, 5.0))
    cost.observe(rows, 3.0)
    rows.other_thread.join()
    for count, seconds in ((2, 3.0), (4, 5.0)):
        expected.observe(count, seconds)
    assert (cost.each, cost.mean) == (expected.each, expected.mean) == (1.0, 8.0 / 6.0)


def test_every_observation_counts(together: Callable[[Callable[[], object]], None]) -> None:
    acceptance = Acceptance(threshold=2.0, forget=0.0, prior=1.0)
    cost, pace = LinearCost(forget=0.0), Pace(cold=THREADS * TIMES, trial=1, forget=0.0)

    def observe() -> None:
        acceptance.observe([0, 1], 1)
        assert 0.0 < acceptance.chance(0) <= 1.0
        cost.observe(2, 4.0)
        pace.observe(1.0, 1)

    together(observe)
    total = THREADS * TIMES
    assert acceptance.chance(0) == pytest.approx((total + 0.1) / (total + 1))
    assert acceptance.chance(1) == pytest.approx(0.3 / (total + 1))
    assert cost.mean == 2.0
    assert pace.seconds_per_byte == 0.0
    pace.observe(3.0, 1)  # the first that is not cold
    assert pace.known
    assert pace.seconds_per_byte == 3.0


class Counting:
    """A drafter that is known to be as fast as the other one."""

    def __init__(self) -> None:
        self.pace = Pace(cold=0, trial=0)

    def round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        yield ScoreRequest()
        return Round((5,), ("sampled",), (), 0)


def test_no_round_is_lost_while_drafters_are_chosen(
    tiny_config: BltConfig, together: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "_RARELY", float("inf"))
    policy, known = Policy(tiny_config), Counting()
    known.pace.observe(1.0, 1)
    idle = Counting()
    idle.pace.observe(1e9, 1)  # as good as never tried again
    policy._drafters = [known, idle]
    session: Any = SimpleNamespace(now=time.perf_counter, tokens=np.zeros(0, np.int64), length=0)
    together(lambda: [*policy.round(session, Sampler(), History())])
    assert policy._idle == [0, THREADS * TIMES]


def test_an_object_that_threads_ask_for_at_once_is_made_once() -> None:
    learned, made = Learned(), []
    start = threading.Barrier(THREADS)

    def make() -> Learned:
        time.sleep(0.01)
        made.append(Learned())
        return made[-1]

    def ask() -> Learned:
        start.wait()
        return learned.recall(Learned, make)

    with ThreadPoolExecutor(THREADS) as pool:
        found = [done.result() for done in [pool.submit(ask) for _ in range(THREADS)]]
    assert len(made) == 1
    assert all(each is made[0] for each in found)
