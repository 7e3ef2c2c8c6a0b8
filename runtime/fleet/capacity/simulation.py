"""Simulates users and replicas event by event; every step is the next event of every replica at once.

A user belongs to one replica (sessions stay where they are). A replica shares its speed among the requests that have a
place, and holds the others in a queue, first come, first served. A message goes to the place that the user's last one
had, if nobody has taken it since: then only the message is read. Otherwise it takes the place whose text is oldest,
and all of the conversation is read again.

Equal shares need no step of time: all requests of a replica advance by the same number of bytes, so each ends when
that common progress reaches a value that is known when it begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.fleet.capacity.figures import ReplicaFigures, UserModel

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: Phases of a place.
FREE, READING, WRITING = 0, 1, 2


@dataclass
class Requests:
    """Holds one value for each request, in any order."""

    replica: list[NDArray[Any]] = field(default_factory=list)
    user: list[NDArray[Any]] = field(default_factory=list)
    arrived: list[NDArray[Any]] = field(default_factory=list)
    started: list[NDArray[Any]] = field(default_factory=list)
    """When it got a place."""
    first: list[NDArray[Any]] = field(default_factory=list)
    """When its prompt had been read."""
    ended: list[NDArray[Any]] = field(default_factory=list)
    length: list[NDArray[Any]] = field(default_factory=list)
    """Bytes of the answer."""
    reused: list[NDArray[Any]] = field(default_factory=list)
    """Bytes of the conversation that were not read again."""
    history: list[NDArray[Any]] = field(default_factory=list)
    """Bytes of the conversation before the message."""

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return every value of all requests, ``[requests]`` each."""
        return {name: np.concatenate([*parts, np.zeros(0)]) for name, parts in vars(self).items()}


class Simulation:
    """Runs a number of replicas, each with its share of the users."""

    def __init__(self, replica: ReplicaFigures, users: UserModel, replicas: int, seed: int = 0) -> None:
        self.users = users
        self.rates = replica.shared_rates()
        self.cost_of_reading = replica.bytes_per_second[0] / replica.prompt_bytes_per_second
        self.rng = np.random.default_rng(seed)
        self.requests = Requests()
        self.rows = np.arange(replicas)
        share = np.bincount(np.arange(users.users) % replicas, minlength=replicas)
        shape = (replicas, int(share.max()))
        self.next_message = self.rng.exponential(users.think_seconds, shape)  # inf: has sent it
        self.next_message[np.arange(shape[1]) >= share[:, None]] = np.inf
        self.sender = self.next_message.argmin(1)  # of the next message of every replica
        self.queued_since = np.full(shape, np.inf)
        self.queued = np.zeros(replicas, dtype=np.int64)
        self.active = np.zeros(replicas, dtype=np.int64)  # requests that have a place
        self.arrived = np.zeros(shape)
        # A conversation whose end is a matter of chance at every turn looks the same at any time.
        earlier = self.rng.geometric(1 / users.turns, shape) - 1
        self.history = earlier * (users.message_bytes + users.response_bytes)
        self.time = np.zeros(replicas)
        self.progress = np.zeros(replicas)  # bytes that each request of a replica has advanced since the beginning
        places = (replicas, min(replica.places, shape[1]))
        self.phase = np.zeros(places, dtype=np.int8)
        self.target = np.full(places, np.inf)  # progress at which the phase ends
        # Whose text it has. Those who wrote last: any users, because chance remembers nothing here either.
        self.holder = np.tile(np.arange(places[1]), (replicas, 1))
        self.last_used = np.tile(-np.arange(places[1], dtype=np.float64), (replicas, 1))
        self.length = np.zeros(places)
        self.reused = np.zeros(places)
        self.started = np.zeros(places)
        self.first = np.zeros(places)

    def run(self, events: int) -> None:
        """Run so many events of every replica."""
        for _ in range(events):
            self.step()

    def step(self) -> None:
        """Run the next event of every replica: a message arrives, a prompt has been read, or an answer ends."""
        rows = self.rows
        arrival = self.next_message[rows, self.sender]
        place = self.target.argmin(1)
        rate = self.rates[self.active]
        left = np.maximum(self.target[rows, place] - self.progress, 0.0)  # rounding: time never goes back
        with np.errstate(divide="ignore", invalid="ignore"):
            due = np.where(np.isfinite(left), self.time + left / rate, np.inf)
        arrives = arrival < due
        now = np.minimum(arrival, due)
        self.progress += rate * (now - self.time)
        self.time = now
        phase = self.phase[rows, place]
        self._arrive(rows[arrives], self.sender[arrives])
        read = rows[~arrives & (phase == READING)]
        self._begin_to_write(read, place[read])
        ended = rows[~arrives & (phase == WRITING)]
        self._end(ended, place[ended])

    def _arrive(self, rows: Numbers, user: Numbers) -> None:
        now = self.time[rows]
        self.next_message[rows, user] = np.inf
        self.sender[rows] = self.next_message[rows].argmin(1)
        self.arrived[rows, user] = now
        full = self.active[rows] == self.phase.shape[1]
        self.queued_since[rows[full], user[full]] = now[full]
        self.queued[rows[full]] += 1
        self._begin(rows[~full], user[~full])

    def _begin(self, rows: Numbers, user: Numbers) -> None:
        """Give requests a place: the one that has their text, else the one that was used least recently."""
        busy = self.phase[rows] != FREE
        own = (self.holder[rows] == user[:, None]) & ~busy
        reuses = own.any(1)
        oldest = np.where(busy, np.inf, self.last_used[rows]).argmin(1)
        place = np.where(reuses, own.argmax(1), oldest)
        history = self.history[rows, user]
        reused = np.where(reuses, history, 0.0)
        work = (history - reused + self.users.message_bytes) * self.cost_of_reading
        self.active[rows] += 1
        self.phase[rows, place] = READING
        self.target[rows, place] = self.progress[rows] + work
        self.holder[rows, place] = user
        self.reused[rows, place] = reused
        self.started[rows, place] = self.time[rows]

    def _begin_to_write(self, rows: Numbers, place: Numbers) -> None:
        length = self.users.lengths(self.rng, len(rows))
        self.phase[rows, place] = WRITING
        self.length[rows, place] = length
        self.target[rows, place] += length
        self.first[rows, place] = self.time[rows]

    def _end(self, rows: Numbers, place: Numbers) -> None:
        now, user, length = self.time[rows], self.holder[rows, place], self.length[rows, place]
        kept = self.requests
        history = self.history[rows, user]
        for values, found in (
            (kept.replica, rows),
            (kept.user, user),
            (kept.arrived, self.arrived[rows, user]),
            (kept.started, self.started[rows, place]),
            (kept.first, self.first[rows, place]),
            (kept.ended, now),
            (kept.length, length),
            (kept.reused, self.reused[rows, place]),
            (kept.history, history),
        ):
            values.append(found)
        over = self.rng.random(len(rows)) < 1 / self.users.turns
        self.history[rows, user] = np.where(over, 0.0, history + self.users.message_bytes + length)
        again = now + self.rng.exponential(self.users.think_seconds, len(rows))
        self.next_message[rows, user] = again
        sooner = again < self.next_message[rows, self.sender[rows]]
        self.sender[rows[sooner]] = user[sooner]
        self.active[rows] -= 1
        self.phase[rows, place] = FREE
        self.target[rows, place] = np.inf
        self.last_used[rows, place] = now
        waiting = rows[self.queued[rows] > 0]
        longest = self.queued_since[waiting].argmin(1)
        self.queued[waiting] -= 1
        self.queued_since[waiting, longest] = np.inf
        self._begin(waiting, longest)
