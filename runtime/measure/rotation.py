"""Rotates the order in which contenders are measured, so that the drift of a noisy machine meets all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rotated(contenders: Sequence[T], turn: int) -> list[T]:
    """Return the contenders in the order of one turn; over as many turns as contenders each is first once."""
    shift = turn % len(contenders)
    return [*contenders[shift:], *contenders[:shift]]
