"""The capacity model against formulas of queueing theory, and what no simulation may lose."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from fastblt.runtime.fleet.capacity import plan as planning
from fastblt.runtime.fleet.capacity.figures import FiguresError, ReplicaFigures, UserModel
from fastblt.runtime.fleet.capacity.plan import EVENTS, Outcome, Promise, most_users_of_a_replica, plan, simulate
from fastblt.runtime.fleet.capacity.simulation import Simulation

#: Answers of one second on one place alone, and prompts that cost nothing.
ONE_SECOND = UserModel(1, 1.0, 0.0, 100.0, 0.0, 1.0)
REPLICAS, TURNS = 30, 4


def served(places: int, load: float, users: int, *, shares: bool = False) -> tuple[dict[str, Any], float]:
    """Requests of so many servers at this load, the first third left out, and the load that came about.

    Args:
        places: servers.
        load: arrivals a second, over the number of servers.
        users: of each replica; the formulas are for very many, who notice nothing of one another.
        shares: all requests share the speed of one, instead of each having its own.
    """
    streams = (1,) if shares else tuple(range(1, places + 1))
    replica = ReplicaFigures(streams, tuple(100.0 * n for n in streams), 1e12, places)
    speed = 1 if shares else places
    all_users = dataclasses.replace(ONE_SECOND, users=users * REPLICAS, think_seconds=users / load / speed - 1)
    simulation = Simulation(replica, all_users, REPLICAS, seed=3)
    simulation.run(EVENTS * TURNS * users)
    found = simulation.requests.arrays()
    end = simulation.time.min()
    counted = (found["arrived"] > end / 3) & (found["arrived"] < end * 0.95)
    kept = {name: values[counted] for name, values in found.items()}
    return kept, float(counted.sum()) / (end * (0.95 - 1 / 3)) / REPLICAS / speed


def test_one_server_waits_as_long_as_pollaczek_and_khinchine_computed() -> None:
    found, load = served(1, 0.6, 200)
    assert load == pytest.approx(0.6, rel=0.02)
    assert np.mean(found["started"] - found["arrived"]) == pytest.approx(load / 2 / (1 - load), rel=0.05)
    np.testing.assert_allclose(found["ended"] - found["started"], 1.0, rtol=1e-6)


def test_several_servers_wait_as_long_as_kimura_approximated() -> None:
    """M/D/c: half of what Erlang's formula makes of M/M/c, and a factor that is near 1."""
    places = 4
    found, load = served(places, 0.6, 400)
    offered = load * places
    last = offered**places / math.factorial(places) / (1 - load)
    erlang = last / (sum(offered**k / math.factorial(k) for k in range(places)) + last) / (places * (1 - load))
    factor = 1 + (1 - load) * (places - 1) * (math.sqrt(4 + 5 * places) - 2) / (16 * places * load)
    assert np.mean(found["started"] - found["arrived"]) == pytest.approx(factor * erlang / 2, rel=0.06)


def test_a_shared_server_takes_as_long_as_theory_has_it() -> None:
    """Equal shares, whatever the length: service over what is left of the server."""
    found, load = served(200, 0.6, 200, shares=True)
    assert np.mean(found["ended"] - found["arrived"]) == pytest.approx(1 / (1 - load), rel=0.05)
    assert (found["started"] == found["arrived"]).all(), "there is a place for everybody"


@pytest.fixture(scope="module")
def busy() -> Simulation:
    """Two dozen replicas with a few places each and users who come back."""
    replica = ReplicaFigures((1, 2, 4), (100.0, 150.0, 200.0), 1000.0, 4)
    simulation = Simulation(replica, UserModel(24 * 30 + 5, 40.0, 50.0, 120.0, 1.0, 4.0), 24, seed=1)
    simulation.run(EVENTS * 30 * 12)
    return simulation


def test_nobody_is_lost(busy: Simulation) -> None:
    """Every user thinks, waits or has exactly one place."""
    thinking = np.isfinite(busy.next_message)
    waiting = np.isfinite(busy.queued_since)
    served = np.zeros_like(thinking)
    rows, places = np.nonzero(busy.phase)
    np.add.at(served, (rows, busy.holder[rows, places]), True)
    assert int(thinking.sum() + waiting.sum() + len(rows)) == 24 * 30 + 5
    assert not (thinking & waiting).any()
    assert not (served & (thinking | waiting)).any()
    assert (busy.active == (busy.phase != 0).sum(1)).all()
    assert (busy.queued == waiting.sum(1)).all()


def test_speed_is_not_made_of_nothing(busy: Simulation) -> None:
    """A replica never writes more than it was measured to, and all that it read and wrote was work."""
    found = busy.requests.arrays()
    assert (found["arrived"] <= found["started"]).all()
    assert (found["started"] < found["first"]).all()
    assert (found["first"] < found["ended"]).all()
    read = (found["history"] - found["reused"] + 50.0) * 100.0 / 1000.0
    assert (found["ended"] - found["started"] >= (read + found["length"]) / 100.0 * (1 - 1e-9)).all()
    work = np.bincount(found["replica"].astype(int), weights=read + found["length"], minlength=24)
    assert (work <= 200.0 * busy.time).all()
    assert (work > 100.0 * busy.time * 0.5).all(), "they are busy"


def test_users_take_turns_and_places_hold_one_text_each(busy: Simulation) -> None:
    found = busy.requests.arrays()
    order = np.lexsort((found["arrived"], found["user"], found["replica"]))
    same = (np.diff(found["replica"][order]) == 0) & (np.diff(found["user"][order]) == 0)
    assert same.any()
    assert (found["arrived"][order][1:][same] >= found["ended"][order][:-1][same]).all()
    inside = np.sort(found["started"][found["replica"] == 0])
    ends = np.sort(found["ended"][found["replica"] == 0])
    begun = np.searchsorted(inside, inside, side="right")
    assert (begun - np.searchsorted(ends, inside, side="right") <= 4).all(), "four places, four requests at once"


def test_requests_and_times_agree_with_littles_law() -> None:
    """Users = arrivals a second x (think + response); so nothing that was counted was counted twice."""
    replica = ReplicaFigures((1, 4), (400.0, 800.0), 5000.0, 8)
    users = UserModel(64 * 40, 20.0, 50.0, 100.0, 0.5, 3.0)
    simulation = Simulation(replica, users, 64, seed=2)
    simulation.run(EVENTS * 40 * 10)
    found = simulation.requests.arrays()
    end = simulation.time.min()
    counted = (found["ended"] > end / 2) & (found["ended"] < end)
    response = np.mean((found["ended"] - found["arrived"])[counted])
    assert counted.sum() / (end / 2) * (20.0 + response) == pytest.approx(users.users, rel=0.02)


def test_more_places_reuse_more() -> None:
    users = UserModel(32 * 30, 30.0, 100.0, 100.0, 0.5, 6.0)
    shares = []
    for places in (2, 8, 30):
        outcome = simulate(ReplicaFigures((1,), (500.0,), 5000.0, places), users, 32, seed=1)
        assert 0 <= outcome.reused_share <= 1
        assert outcome.utilization < 1
        shares.append(outcome.reused_share)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.75, "who comes back finds a place for each user of the replica"


def test_a_plan_keeps_its_promise_and_half_of_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "TRIAL_REPLICAS", 16)
    monkeypatch.setattr(planning, "LEAST_MESSAGES", 1000)
    replica = ReplicaFigures((1, 8), (200.0, 300.0), 4000.0, 8, price_per_hour=0.5)
    users = UserModel(1500, 30.0)
    promise = Promise(2.0, 30.0)
    found = plan(replica, users, promise)
    assert found.outcome == simulate(replica, users, found.replicas), "the seed decides"
    assert promise.kept_by(found.outcome), "not only in the trials of the search"
    fewest = math.ceil(1500 / most_users_of_a_replica(replica, users, promise))
    assert fewest <= found.replicas <= 1.2 * fewest
    assert found.price_per_hour == found.replicas * 0.5
    assert found.price_per_million_bytes == pytest.approx(
        found.price_per_hour / 3600 / found.outcome.bytes_per_second * 1e6
    )
    assert not promise.kept_by(simulate(replica, users, max(1, found.replicas // 2)))


def test_a_replica_that_is_too_slow_for_anybody_is_no_plan() -> None:
    with pytest.raises(FiguresError, match="one user alone has more to wait"):
        plan(ReplicaFigures((1,), (10.0,), 10.0, 1), UserModel(10), Promise(0.5))


def test_a_simulation_without_requests_has_no_outcome() -> None:
    replica = ReplicaFigures((1,), (10.0,), 10.0, 1)
    with pytest.raises(FiguresError, match="found no request"):
        Outcome.of(Simulation(replica, UserModel(10), 1).requests, replica, 1)


def test_speed_is_shared_and_linear_between_figures() -> None:
    found = ReplicaFigures((1, 3), (10.0, 20.0), 100.0, 5)
    np.testing.assert_allclose(found.shared_rates(), [0.0, 10.0, 7.5, 20 / 3, 5.0, 4.0])
    assert found.most_bytes_per_second == 20.0


FIGURES = {"streams": (1, 2), "bytes_per_second": (10.0, 15.0), "prompt_bytes_per_second": 100.0, "places": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streams": (2, 4)}, "begin with 1"),
        ({"streams": (1, 1)}, "ascending"),
        ({"bytes_per_second": (1.0,)}, "as many figures"),
        ({"bytes_per_second": (1.0, float("nan"))}, "more than 0"),
        ({"places": 0}, "at least 1"),
        ({"price_per_hour": -1}, "at least 0"),
    ],
)
def test_figures_that_describe_no_replica(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FiguresError, match=message):
        ReplicaFigures(**{**FIGURES, **change})


@pytest.mark.parametrize("change", [{"users": 0}, {"think_seconds": 0}, {"turns": 0.5}, {"response_spread": -1}])
def test_users_who_do_not_exist(change: dict[str, Any]) -> None:
    with pytest.raises(FiguresError, match="expected"):
        UserModel(**change)
