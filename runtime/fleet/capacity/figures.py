"""What one replica was measured to do, and what users do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Largest number that a figure may be: bytes a second, seconds, users.
LARGEST = 1e12


class FiguresError(ValueError):
    """Reports figures that describe no replica and no user."""


@dataclass(frozen=True)
class ReplicaFigures:
    """Holds what was measured of one replica."""

    streams: tuple[int, ...]
    """Numbers of requests at once that were measured, ascending, from 1 on."""
    bytes_per_second: tuple[float, ...]
    """For each of them, bytes a second that all requests received together."""
    prompt_bytes_per_second: float
    """Bytes of prompts that one request alone has read a second."""
    places: int
    """Sequences that the replica keeps in memory: the most requests at once, and the most prompts to go on from."""
    price_per_hour: float = 1.0
    """What an hour of it costs, in any currency."""
    source: str = ""
    """How and where it was measured."""

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            FiguresError: they describe no replica.
        """
        _expect(self.streams[:1] == (1,), "streams", self.streams, "numbers that begin with 1")
        _expect(list(self.streams) == sorted(set(self.streams)), "streams", self.streams, "ascending numbers")
        same = len(self.streams) == len(self.bytes_per_second)
        _expect(same, "bytes_per_second", self.bytes_per_second, f"as many figures as streams: {len(self.streams)}")
        for rate in (*self.bytes_per_second, self.prompt_bytes_per_second):
            _expect(0 < rate <= LARGEST, "bytes a second", rate, f"more than 0 and at most {LARGEST:g}")
        _expect(1 <= self.places <= LARGEST, "places", self.places, "at least 1")
        _expect(0 <= self.price_per_hour <= LARGEST, "price_per_hour", self.price_per_hour, "at least 0")

    @property
    def most_bytes_per_second(self) -> float:
        """Return the most bytes a second that were measured, whatever the number of requests."""
        return max(self.bytes_per_second)

    def shared_rates(self) -> NDArray[np.float64]:
        """Return bytes a second of *each* of n requests at once, ``[places + 1]``, index n; linear between figures.

        Beyond the last figure all requests together get what the last one got.
        """
        active = np.arange(1, self.places + 1, dtype=np.float64)
        together = np.interp(active, self.streams, self.bytes_per_second)
        return np.concatenate([[0.0], together / active])


@dataclass(frozen=True)
class UserModel:
    """Describes what users do: they read and type, send a message with all of the conversation before it, and wait."""

    users: int = 1_000_000
    think_seconds: float = 60.0
    """Mean time from the end of an answer to the next message; exponentially distributed."""
    message_bytes: float = 120.0
    """Length of every message."""
    response_bytes: float = 400.0
    """Mean length of answers; lognormal."""
    response_spread: float = 1.0
    """Standard deviation of the length of answers over its mean; 0: all have the same length."""
    turns: float = 5.0
    """Mean messages of a conversation; geometric."""

    def __post_init__(self) -> None:
        """Check the description.

        Raises:
            FiguresError: nobody behaves like that.
        """
        _expect(1 <= self.users <= 1e8, "users", self.users, "1 to 100,000,000")
        for name in ("think_seconds", "response_bytes"):
            value = getattr(self, name)
            _expect(0 < value <= LARGEST, name, value, "more than 0")
        _expect(0 <= self.message_bytes <= LARGEST, "message_bytes", self.message_bytes, "at least 0")
        _expect(0 <= self.response_spread <= 10, "response_spread", self.response_spread, "0 to 10")
        _expect(1 <= self.turns <= LARGEST, "turns", self.turns, "at least 1")

    def lengths(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return the lengths of so many answers, in bytes; at least 1."""
        if not self.response_spread:
            return np.full(count, max(1.0, self.response_bytes))
        sigma = math.sqrt(math.log1p(self.response_spread**2))
        return np.maximum(1.0, rng.lognormal(math.log(self.response_bytes) - sigma**2 / 2, sigma, count))


def _expect(correct: bool, name: str, found: object, expected: str) -> None:
    if not correct:
        raise FiguresError(f"{name}: found {found}, expected {expected}")
