"""Adaptive drafting: what it learns, and that nothing of it shows in the text."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.config import BltConfig
from fastblt.models.tokens import encode
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.methods import MethodError, parse_method
from fastblt.runtime.methods.adaptive.drafters import LONGEST_DRAFT, BlockDrafter, ByteDrafter
from fastblt.runtime.methods.adaptive.estimates import Acceptance, LinearCost, Pace
from fastblt.runtime.methods.adaptive.lookup import LookupDrafter
from fastblt.runtime.methods.adaptive.policy import Policy
from fastblt.runtime.methods.method import Round
from fastblt.runtime.sequence.requests import Request, ScoreRequest, Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

Scripted = Callable[..., Backend]
TEXT = (
    b"It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want. " * 3
)


def test_acceptance_follows_what_was_observed() -> None:
    acceptance = Acceptance(threshold=2.0)
    sure = acceptance.classify(0.99, 0.1, at_limit=False)
    unsure = acceptance.classify(0.3, 0.1, at_limit=False)
    before = acceptance.chance(unsure)
    assert acceptance.chance(sure) > before
    for _ in range(100):
        acceptance.observe([sure, unsure], 1)  # the first is kept, the second fails
    assert acceptance.chance(sure) > 0.95
    assert acceptance.chance(unsure) < 0.1
    assert acceptance.mean == pytest.approx(0.5, abs=0.1)


def test_bytes_after_the_first_failure_say_nothing() -> None:
    acceptance = Acceptance(threshold=2.0)
    kinds = [acceptance.classify(p, 0.0, at_limit=False) for p in (0.99, 0.5, 0.7)]
    last = acceptance.chance(kinds[2])
    acceptance.observe(kinds, 1)
    assert acceptance.chance(kinds[2]) == last
    acceptance.observe(kinds, 3)
    assert acceptance.chance(kinds[2]) > last


def test_classes_tell_probability_surprise_and_the_longest_patch_apart() -> None:
    acceptance = Acceptance(threshold=2.0)
    kinds = {
        acceptance.classify(p, surprise, at_limit=limit)
        for p in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
        for surprise, limit in ((0.5, False), (1.2, False), (1.9, False), (2.5, False), (0.5, True))
    }
    assert kinds == set(range(30))
    for kind in kinds:
        assert 0.0 < acceptance.chance(kind) < 1.0


def test_linear_cost_finds_the_price_of_a_row() -> None:
    cost = LinearCost()
    assert cost.each == cost.mean == 0.0
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 12, size=300).tolist():
        cost.observe(rows, 2e-3 + 1e-4 * rows + rng.normal(0, 2e-5))
    assert cost.each == pytest.approx(1e-4, rel=0.15)
    constant = LinearCost()
    for _ in range(5):
        constant.observe(4, 1e-3)
    assert constant.each == 0.0
    assert constant.mean == pytest.approx(2.5e-4)


def test_pace_leaves_cold_rounds_out() -> None:
    pace = Pace(cold=2, trial=3)
    for seconds in (9.0, 9.0, 1.0, 1.0):
        pace.observe(seconds, 4)
        assert not pace.known
    pace.observe(1.0, 4)
    assert pace.known
    assert pace.seconds_per_byte == pytest.approx(0.25)


@pytest.mark.parametrize("disturbed", [(0, 3, 4), (2, 7, 30), ()])
def test_what_the_machine_does_in_between_is_not_learned(disturbed: tuple[int, ...]) -> None:
    cost, pace = LinearCost(), Pace(cold=0)
    for number in range(60):
        delay = 1.0 if number in disturbed else 0.0
        rows = 1 + number % 8
        cost.observe(rows, 2e-3 + 1e-4 * rows + delay)
        pace.observe(4e-3 + delay, 4)
    assert pace.seconds_per_byte < 1.5e-3
    assert cost.fixed + 4 * cost.each < 2 * 2.4e-3
    assert cost.each < 1e-3


def test_times_that_rise_for_good_are_followed() -> None:
    pace = Pace(cold=0)
    for seconds in [1.0] * 20 + [10.0] * 200:
        pace.observe(seconds, 1)
    assert pace.seconds_per_byte == pytest.approx(10.0, rel=0.25)


@pytest.mark.parametrize("rounds", [1, 6, 11, 12, 40])
def test_a_pace_in_doubt_weighs_less_however_few_rounds_are_known(rounds: int) -> None:
    paces = [Pace(cold=0), Pace(cold=0)]
    for pace in paces:
        for _ in range(rounds):
            pace.observe(2.0, 1)
    paces[1].doubt()
    assert paces[0].seconds_per_byte == paces[1].seconds_per_byte == pytest.approx(2.0)
    for pace in paces:
        pace.observe(1.0, 1)
    sure, doubted = (2.0 - pace.seconds_per_byte for pace in paces)
    assert doubted > 1.5 * sure


def test_a_pace_in_doubt_before_its_first_round_learns_as_any_other() -> None:
    pace = Pace(cold=0)
    pace.doubt()
    for seconds in (1.0, 0.1, 0.1):
        pace.observe(seconds, 1)
    assert pace.seconds_per_byte < 0.2


class TimedDrafter:
    """A drafter of which only the speed matters."""

    def __init__(self) -> None:
        self.pace = Pace(cold=0, trial=1)
        self.rounds = 0

    def round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        self.rounds += 1
        yield ScoreRequest()
        return Round((5, 5), ("accepted", "free"), (), 1)


def test_policy_takes_the_fastest_and_tries_the_other_now_and_then(tiny_config: BltConfig) -> None:
    policy, fast, slow = Policy(tiny_config), TimedDrafter(), TimedDrafter()
    policy._drafters = [slow, fast]
    clock = [0.0]
    session: Any = SimpleNamespace(now=lambda: clock[0])

    def run(rounds: int, seconds: dict[TimedDrafter, float]) -> None:
        for _ in range(rounds):
            before = slow.rounds
            chosen = policy._drafters[policy._choose()]
            assert isinstance(chosen, TimedDrafter)
            steps = policy._draft(session, Sampler())
            next(steps)
            clock[0] += seconds[chosen]
            with pytest.raises(StopIteration):
                steps.send(None)
            assert slow.rounds - before in (0, 1)

    run(400, {fast: 1.0, slow: 1.2})
    assert 3 <= slow.rounds <= 10
    # The text changes: now the other one is faster.
    run(1200, {fast: 2.0, slow: 1.0})
    assert slow.rounds > 600


@pytest.mark.parametrize("kind", ["onnxruntime", "eager"])
def test_bytes_equal_autoregression(open_backend: Callable[[str, str, int], Backend], kind: str) -> None:
    for decoder_input in ("embedding", "encoder"):
        runtime = BltRuntime(open_backend(kind, decoder_input, 300))
        for prompt in (b"", bytes(range(120, 160))):
            expected = runtime.generate(prompt, 60, method="ar", stop_at_eos=False)
            found = runtime.generate(prompt, 60, method="auto", stop_at_eos=False)
            assert found.data == expected.data
            assert 0 < found.stats.accepted < found.stats.drafted
            assert found.stats.nfe["patcher"] < expected.stats.nfe["patcher"]


def test_blocks_are_tried_where_the_model_has_a_mask(open_backend: Callable[[str, str, int], Backend]) -> None:
    for decoder_input, kinds in (("embedding", [ByteDrafter, BlockDrafter]), ("encoder", [ByteDrafter])):
        backend = open_backend("eager", decoder_input, 300)
        runtime = BltRuntime(backend)
        runtime.generate(b"abc", 150, method="auto", stop_at_eos=False)
        drafters = policy_of(runtime)._drafters
        assert [type(drafter) for drafter in drafters] == kinds
        assert all(drafter.pace.known for drafter in drafters)


@pytest.mark.parametrize("decoder_input", ["embedding", "mixed"])
def test_blocks_read_the_latent_that_they_were_trained_on(
    open_backend: Callable[[str, str, int], Backend], monkeypatch: pytest.MonkeyPatch, decoder_input: str
) -> None:
    backend = open_backend("onnxruntime", decoder_input, 300)
    expected = BltRuntime(backend).generate(b"abc", 100, method="ar", stop_at_eos=False)
    monkeypatch.setattr(backend, "config", dataclasses.replace(backend.config, block_latent="partial"))
    read: list[str] = []
    answer = Session.answer

    def watched(session: Session, request: Request) -> Any:
        if isinstance(request, ScoreRequest) and request.block is not None:
            read.append(request.latent)
        return answer(session, request)

    monkeypatch.setattr(Session, "answer", watched)
    runtime = BltRuntime(backend)
    assert runtime.generate(b"abc", 100, method="auto", stop_at_eos=False).data == expected.data
    assert len(read) >= 8
    assert set(read) == {"partial"}


def policy_of(runtime: BltRuntime) -> Policy:
    """What a runtime has learned; fails where it has learned nothing."""
    with runtime.session() as session:
        return session.learned.recall(Policy, lambda: pytest.fail("nothing was learned"))


def test_what_is_learned_belongs_to_the_runtime(scripted: Scripted) -> None:
    backend = scripted(encode(TEXT, bos=False).tolist())
    runtime, other = BltRuntime(backend), BltRuntime(backend)
    runtime.generate(TEXT[:4], 60, method="auto")
    policy = policy_of(runtime)
    runtime.generate(TEXT[:4], 60, method="auto")
    assert policy_of(runtime) is policy
    other.generate(TEXT[:4], 60, method="auto")
    assert policy_of(other) is not policy


@examples(40)
@given(surprising=st.sets(st.integers(1, 200)), misdrafted=st.sets(st.integers(1, 200)))
def test_drafts_never_show_in_the_text(scripted: Scripted, surprising: set[int], misdrafted: set[int]) -> None:
    backend = scripted(encode(TEXT, bos=False).tolist(), surprising=surprising, misdrafted=misdrafted)
    found = BltRuntime(backend).generate(TEXT[:4], 180, method="auto")
    assert found.data == TEXT[4:184]


def test_a_drafter_that_was_measured_at_a_bad_moment_gets_another_chance(tiny_config: BltConfig) -> None:
    policy, fast, unlucky = Policy(tiny_config), TimedDrafter(), TimedDrafter()
    policy._drafters = [unlucky, fast]
    clock = [0.0]
    session: Any = SimpleNamespace(now=lambda: clock[0])
    for number in range(4000):
        before = unlucky.rounds
        steps = policy._draft(session, Sampler())
        next(steps)
        clock[0] += (30.0 if number == 0 else 0.5) if unlucky.rounds > before else 1.0
        with pytest.raises(StopIteration):
            steps.send(None)
    assert unlucky.rounds > 1000


def test_drafts_end_where_another_byte_costs_more_than_it_is_worth(scripted: Scripted) -> None:
    """Draft rows of known price: a byte that costs less than it takes now is drafted on and on, a dear one is not."""
    lengths = []
    for price in (0.01, 0.5, 5.0):
        session = Session(scripted(encode(TEXT, bos=False).tolist()))
        session.append(encode(TEXT[:4], bos=False))
        drafter = ByteDrafter(session.config)
        drafter.pace = Pace(cold=0)
        drafter.pace.observe(1.0, 1)  # a byte takes a second at present
        drafter._row.observe(1, price)
        session.append([int(session.score().best[-1])])
        lengths.append(session.run(drafter.round(session, Sampler())).drafted)
    assert lengths[0] == LONGEST_DRAFT
    assert 1 < lengths[1] < lengths[0]
    assert lengths[2] == 1


def test_lookup_is_worth_what_its_chance_and_the_clock_say() -> None:
    cost = LinearCost()
    for rows in (4, 12, 20):
        cost.observe(rows, 1.0 + 0.1 * rows)
    lookup = LookupDrafter(cost)
    for _ in range(60):
        lookup.observe(40, [7] * 20, [7] * 20)
        lookup.observe(5, [7, 7], [8, 7])
    assert lookup.chance(40) > 0.95
    assert lookup.chance(5) < 0.1
    assert lookup.worth(40, 20, seconds_per_byte=1.0) == 20
    assert lookup.worth(5, 20, seconds_per_byte=1.0) == 0, "hardly ever right"
    assert lookup.worth(40, 20, seconds_per_byte=0.12) == 0, "another drafter is as fast"
    assert lookup.worth(40, 0, seconds_per_byte=1.0) == 0


def test_repeated_text_is_looked_up_and_nothing_shows(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    worth = LookupDrafter.worth
    monkeypatch.setattr(LookupDrafter, "worth", lambda *args: taken.append(worth(*args)) or taken[-1])
    text = TEXT + TEXT
    for misdrafted in (set[int](), set(range(0, 600, 7))):
        backend = scripted(encode(text, bos=False).tolist(), misdrafted=misdrafted)
        runtime = BltRuntime(backend)
        for prompt in (4, 150):
            found = runtime.generate(text[:prompt], 400, method="auto")
            assert found.data == text[prompt : prompt + 400]
    assert max(taken) > 8


def test_argument_is_refused() -> None:
    with pytest.raises(MethodError, match="'auto:4': found an argument"):
        parse_method("auto:4")
