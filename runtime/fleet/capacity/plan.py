"""Finds how many replicas a number of users needs, simulates them all, and reports what users see and pay."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastblt.runtime.fleet.capacity.figures import FiguresError, ReplicaFigures, UserModel
from fastblt.runtime.fleet.capacity.simulation import Requests, Simulation

#: Replicas that a trial of the search simulates, and messages of every user, half of them before anything is counted.
TRIAL_REPLICAS = 32
TURNS = 4
#: Fewest messages that a simulation counts on: percentiles of fewer are a matter of luck.
LEAST_MESSAGES = 4_000
#: Events of a message: it arrives, it has been read, the answer ends.
EVENTS = 3
#: Most users of a replica that the search tries.
MOST_SHARE = 100_000


@dataclass(frozen=True)
class Outcome:
    """Holds what users saw in the counted part of a simulation, and how busy the replicas were."""

    requests: int
    seconds: float
    """Length of the counted part."""
    bytes_per_second: float
    """Bytes of answers that all users together received a second."""
    utilization: float
    """Share of the most bytes a second that the replicas have been measured to write."""
    wait_p50: float
    wait_p95: float
    """Seconds until a request had a place."""
    first_byte_p50: float
    first_byte_p95: float
    first_byte_p99: float
    """Seconds until the prompt had been read."""
    user_bytes_per_second_p50: float
    user_bytes_per_second_p5: float
    """Bytes a second of one answer, from its first byte on."""
    reused_share: float
    """Share of the conversations' bytes that were not read again."""

    @classmethod
    def of(cls, requests: Requests, replica: ReplicaFigures, replicas: int) -> Outcome:
        """Summarize the requests that arrived in the second half of the time that every replica has simulated.

        Raises:
            FiguresError: there are none.
        """
        found = requests.arrays()
        if not len(found["ended"]):
            raise FiguresError("found no request that ended, expected a longer simulation")
        last = np.zeros(replicas)
        np.maximum.at(last, found["replica"].astype(np.int64), found["ended"])
        end = float(last.min())
        begin = end / 2
        ended = (found["ended"] > begin) & (found["ended"] <= end)
        if not ended.any():
            raise FiguresError("found no request in the counted half, expected a longer simulation")
        counted = {name: values[ended] for name, values in found.items()}
        speed = float(counted["length"].sum()) / (end - begin)
        wait = counted["started"] - counted["arrived"]
        first = counted["first"] - counted["arrived"]
        writing = np.maximum(counted["ended"] - counted["first"], 1e-9)
        p50, p95, p99 = np.percentile(first, (50, 95, 99))
        slow, usual = np.percentile(counted["length"] / writing, (5, 50))
        return cls(
            int(ended.sum()),
            end - begin,
            speed,
            speed / (replicas * replica.most_bytes_per_second),
            float(np.percentile(wait, 50)),
            float(np.percentile(wait, 95)),
            float(p50),
            float(p95),
            float(p99),
            float(usual),
            float(slow),
            float(counted["reused"].sum() / max(1.0, counted["history"].sum())),
        )


@dataclass(frozen=True)
class Promise:
    """Holds what 95 % of the requests have to get."""

    first_byte: float = 2.0
    """Most seconds until the first byte."""
    bytes_per_second: float = 20.0
    """Fewest bytes a second from then on; people read about that fast."""

    def kept_by(self, outcome: Outcome) -> bool:
        """Return whether users got that."""
        fast = outcome.user_bytes_per_second_p5 >= self.bytes_per_second
        return fast and outcome.first_byte_p95 <= self.first_byte


@dataclass(frozen=True)
class Plan:
    """Holds the replicas that are needed, what they cost, and what their users see."""

    replica: ReplicaFigures
    users: UserModel
    promise: Promise
    replicas: int
    users_per_replica: int
    price_per_hour: float
    price_per_million_bytes: float
    outcome: Outcome
    seed: int
    seconds: float
    """Time that the simulation of all users took."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in plain JSON types."""
        return dataclasses.asdict(self)


def simulate(replica: ReplicaFigures, users: UserModel, replicas: int, seed: int = 0) -> Outcome:
    """Simulate users who are spread over replicas.

    Args:
        replica: what one of them does.
        users: what all of them do.
        replicas: how many there are.
        seed: of every random number.
    """
    simulation = Simulation(replica, users, replicas, seed)
    turns = max(TURNS, math.ceil(LEAST_MESSAGES / users.users))
    simulation.run(EVENTS * turns * math.ceil(users.users / replicas))
    return Outcome.of(simulation.requests, replica, replicas)


def most_users_of_a_replica(replica: ReplicaFigures, users: UserModel, promise: Promise, seed: int = 0) -> int:
    """Return the most users that a replica can have while it keeps a promise; 0: not even one.

    Doubles the number while it is kept, then halves the distance to the first that is too large.
    """

    def fits(share: int) -> bool:
        trial = dataclasses.replace(users, users=share * TRIAL_REPLICAS)
        outcome = simulate(replica, trial, TRIAL_REPLICAS, seed)
        return promise.kept_by(outcome)

    good, bad = 0, 1
    while bad <= MOST_SHARE and fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > max(1, good // 50):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _simulate_all(replica: ReplicaFigures, users: UserModel, share: int, seed: int) -> tuple[int, Outcome, float]:
    """Return the replicas for `share` users each, what all users see with them, and how long simulating them took."""
    replicas = math.ceil(users.users / min(share, users.users))
    began = time.perf_counter()
    outcome = simulate(replica, users, replicas, seed)
    return replicas, outcome, time.perf_counter() - began


def plan(replica: ReplicaFigures, users: UserModel, promise: Promise, seed: int = 0) -> Plan:
    """Return how many replicas are needed so that a simulation of all users on them keeps the promise.

    Args:
        replica: what one was measured to do.
        users: how many there are, and what they do.
        promise: what they have to get.
        seed: of every random number; the same one finds the same plan.

    Raises:
        FiguresError: a replica is too slow for one user.
    """
    share = most_users_of_a_replica(replica, users, promise, seed)
    if not share:
        raise FiguresError(
            f"replica: found that one user alone has more to wait, expected a first byte in {promise.first_byte} s and "
            f"{promise.bytes_per_second} bytes a second"
        )
    replicas, outcome, seconds = _simulate_all(replica, users, share, seed)
    while share > 1 and not promise.kept_by(outcome):  # a trial is small: what it found may be a little too many
        share = min(share, users.users) - max(1, share // 40)
        replicas, outcome, seconds = _simulate_all(replica, users, max(1, share), seed)
    price = replicas * replica.price_per_hour
    million = price / (outcome.bytes_per_second * 3600) * 1e6
    return Plan(
        replica,
        users,
        promise,
        replicas,
        math.ceil(users.users / replicas),
        price,
        million,
        outcome,
        seed,
        seconds,
    )
