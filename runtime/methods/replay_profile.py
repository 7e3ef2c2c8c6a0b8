"""Defines how a method is driven in a replay, where rates take the place of a trained model's answers.

``bench --replay`` (`fastblt.runtime.measure.replay`) runs the real graphs but replaces what they return, so that drafts
are accepted and blocks take steps at given rates. What those rates mean for the rows of a method, only the method
knows: it states it by `Replayable.replay_profile`. A method without one cannot be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fastblt.models.config import BltConfig

#: Keys of rates: the part of the drafted bytes that verification keeps, and the decoder calls of a block.
ACCEPTANCE, STEPS = "acceptance", "steps"


class ReplayError(ValueError):
    """Reports a replay that is malformed, or that no generation with a method can show."""


@dataclass(frozen=True)
class ReplayProfile:
    """Holds how a method is driven."""

    draft_rate: float = 1.0
    """Chance that a byte drafted by a decoder row of its own agrees, given that those before it do."""
    block_rate: float = 1.0
    """The same for a byte of a block."""
    patch_rate: float = 0.0
    """Chance that a patch continues after each of its bytes, below the maximum length; the same for every method."""
    patch: float = 1.0
    """Bytes per patch; the same for every method."""
    acceptance: float | None = None
    """Accepted / drafted that the rates were made for."""
    steps: float | None = None
    """Decoder calls per block."""
    clean_first: bool = True
    """Whether the row before a block decides the block's first byte."""
    clean_drafts: bool = False
    """Whether that row is part of the draft; False: it is the model's final answer."""

    @property
    def first_is_sure(self) -> bool:
        """Return whether a block's first byte is the model's final answer; ``block_rate`` is about the others then."""
        return self.clean_first and not self.clean_drafts


class Rates(Protocol):
    """Answers which rates a user asked for; ``key`` is `ACCEPTANCE` or `STEPS`."""

    def needed(self, method: str, key: str) -> float:
        """Return the rate that holds for a method; raise `ReplayError` where there is none."""
        ...

    def own(self, method: str, key: str) -> float | None:
        """Return the rate that was given for this method alone."""
        ...

    def published(self, method: str, key: str) -> float | None:
        """Return the paper's figure for a method, where the paper's figures were asked for."""
        ...


@runtime_checkable
class Replayable(Protocol):
    """Marks a method that can be replayed."""

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Return how rates drive this method on a model; ``patch_rate`` and ``patch`` are filled in by the caller.

        Raises:
            ReplayError: a rate is missing, or no generation with this method can show it.
        """
        ...


def profile_of(method: object, name: str, rates: Rates, config: BltConfig) -> ReplayProfile:
    """Return how rates drive a method on a model; ``patch_rate`` and ``patch`` are not set.

    Raises:
        ReplayError: the method has no profile, a rate is missing, or no generation with this method can show it.
    """
    if not isinstance(method, Replayable):
        raise ReplayError(
            f"--replay: found method {name}, which has no replay profile; expected one that defines replay_profile()"
        )
    return method.replay_profile(rates, config)


def rate_for(mean: float, count: int) -> float:
    """Return the rate a with a + a^2 + ... + a^count = mean: of ``count`` bytes, ``mean`` precede the first failure.

    Args:
        mean: 0..count.
        count: >= 0.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**power for power in range(1, count + 1)) < mean:
            low = middle
        else:
            high = middle
    return 1.0 if mean >= count else high
