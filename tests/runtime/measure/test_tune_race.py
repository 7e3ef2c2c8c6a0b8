"""The race: who drops out, who wins, when it ends. The times are given: no clock of this machine is read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Mapping

import pytest

from fastblt.runtime.measure.tune.race import FEWEST_ROUNDS, Race, Standing

#: Seconds per byte of a contender in a round.
Times = Callable[[str, int], float]


def run(
    times: Times,
    contenders: str,
    seconds: float = 1e9,
    group: Callable[[str], Hashable] = lambda contender: None,
) -> tuple[Race[str], list[tuple[str, int]]]:
    """A race of contenders, each of which takes as long as it measures, and who was measured in which round."""
    race, calls, now = Race(list(contenders), group), list[tuple[str, int]](), 0.0

    def measure(contender: str, turn: int) -> float:
        nonlocal now
        assert turn < 2000, "the race does not end"
        calls.append((contender, turn))
        now += times(contender, turn)
        return times(contender, turn)

    race.run(measure, seconds, lambda: now)
    return race, calls


def steady(paces: Mapping[str, float]) -> Times:
    return lambda contender, turn: paces[contender]


def noisy(paces: Mapping[str, float], spread: float, seed: int = 0) -> Times:
    """Times that other work makes longer now and then, and a bit all the time."""

    def times(contender: str, turn: int) -> float:
        chance = random.Random(f"{contender} {turn} {seed}")
        burst = 5.0 if chance.random() < 0.1 else 1.0
        return paces[contender] * burst * (1 + spread * chance.random())

    return times


def standing(race: Race[str], contender: str) -> Standing[str]:
    return next(each for each in race.standings() if each.contender == contender)


def test_what_is_clearly_slower_drops_out_early() -> None:
    race, calls = run(steady({"a": 1.0, "b": 1.003, "c": 2.0}), "cab")
    assert [each.contender for each in race.standings()] == ["a", "b", "c"]
    assert [each.dropped for each in race.standings()] == [False, False, True]
    assert standing(race, "c").rounds == FEWEST_ROUNDS == sum(contender == "c" for contender, _ in calls)
    assert standing(race, "c").ratio == pytest.approx(2.0)
    assert standing(race, "c").seconds_per_byte == pytest.approx(2.0)


def test_equals_end_the_race_when_more_rounds_would_find_nothing() -> None:
    race, _ = run(steady({"a": 1.0, "b": 1.003}), "ab")
    assert race.settled()
    assert FEWEST_ROUNDS < race.rounds < 300
    assert race.left == ["a", "b"]


def test_order_rotates_and_each_round_is_of_all() -> None:
    race, calls = run(steady(dict.fromkeys("abc", 1.0)), "abc", seconds=10.0)
    assert race.rounds == 3
    assert "".join(contender for contender, _ in calls) == "abc" + "bca" + "cab"
    assert [turn for _, turn in calls] == [0] * 3 + [1] * 3 + [2] * 3


def test_a_machine_that_gets_slower_and_hard_prompts_meet_all_alike() -> None:
    """By plain medians, who dropped out before the machine slowed down would look fastest of all."""
    paces = {"a": 1.0, "b": 1.1, "c": 3.0}
    race, _ = run(lambda contender, turn: paces[contender] * 1.3**turn * (1 + turn % 2), "cba", seconds=1e6)
    assert [each.contender for each in race.standings()] == ["a", "b", "c"]
    assert standing(race, "b").ratio == pytest.approx(1.1)
    assert standing(race, "c").ratio == pytest.approx(3.0)


def test_a_burst_of_other_work_drops_nobody() -> None:
    race, _ = run(lambda contender, turn: 20.0 if (contender, turn) in {("a", 1), ("b", 3)} else 1.0, "ab", seconds=300)
    assert race.left == ["a", "b"]


@pytest.mark.parametrize("seed", range(20))
def test_winner_is_near_the_best_on_a_noisy_machine(seed: int) -> None:
    paces = {name: 1.0 + 0.03 * index for index, name in enumerate("abcdefgh")}
    race, _ = run(noisy(paces, 0.2, seed), "hgfedcba", seconds=2000)
    assert paces[race.leaders()[None]] < 1.03 + 1e-9
    assert race.rounds > FEWEST_ROUNDS
    assert standing(race, "h").dropped


def test_no_round_begins_that_would_end_after_the_deadline() -> None:
    """A round takes 3 s; what the first one took besides measuring is not expected again, up to half of it."""
    for seconds, rounds in ((4.4, 1), (4.6, 2), (8.9, 2), (9.1, 3)):
        race, _ = run(steady({"a": 1.0, "b": 2.0}), "ab", seconds=seconds)
        assert race.rounds == rounds, seconds


def test_first_round_ends_at_the_deadline_and_measures_someone() -> None:
    race, calls = run(steady(dict.fromkeys("abc", 1.0)), "abc", seconds=1.5)
    assert calls == [("a", 0), ("b", 0)]
    assert [each.contender for each in race.standings()] == ["a", "b"]
    assert race.left == ["a", "b"]
    race, calls = run(steady(dict.fromkeys("abc", 1.0)), "abc", seconds=0.0)
    assert calls == [("a", 0)]
    assert race.leaders() == {None: "a"}


def test_each_group_has_a_leader_of_its_own() -> None:
    """b is slower than anybody of the other group, and stays."""
    paces = {"a": 1.0, "A": 2.0, "b": 5.0, "B": 10.0}
    race, _ = run(steady(paces), "aAbB", group=str.lower)
    assert race.leaders() == {"a": "a", "b": "b"}
    assert race.left == ["a", "b"]
    assert [(each.contender, each.ratio) for each in race.standings()] == [
        (contender, pytest.approx(ratio)) for contender, ratio in (("a", 1.0), ("A", 2.0), ("b", 1.0), ("B", 2.0))
    ]
    assert race.ratio("b", "a") == pytest.approx(5.0)


def test_winner_beats_each_other_one_directly() -> None:
    """Against the mean of all, b is fastest in the median round; against b itself, a is."""
    times = {"a": (1.0, 1.0, 1.0), "b": (1.1, 1.1, 0.5), "c": (0.6, 9.0, 2.0)}
    race, _ = run(lambda contender, turn: times[contender][turn % 3], "cba", seconds=30.0)
    assert race.leaders() == {None: "a"}


def test_a_group_of_which_nothing_was_measured_has_no_leader() -> None:
    race, _ = run(steady({"a": 1.0, "b": 1.0}), "ab", seconds=0.5, group=str)
    assert race.leaders() == {"a": "a"}
    assert [each.contender for each in race.standings()] == ["a"]


def test_few_rounds_that_are_alike_by_chance_drop_nobody() -> None:
    """c's ratios happen to be equal, while all others show that the machine is not that exact."""
    shifts = itertools.cycle([1.0, 1.6, 0.7, 1.3, 0.8])
    scattered = {(name, turn): next(shifts) for name in "bdefgh" for turn in range(FEWEST_ROUNDS)}
    scattered |= {("c", turn): 1.35 for turn in range(FEWEST_ROUNDS)}
    race, _ = run(lambda contender, turn: scattered.get((contender, turn), 1.0), "abcdefgh", seconds=49.0)
    assert race.rounds == FEWEST_ROUNDS
    assert "c" in race.left
