"""Defines the error of everything that reads or writes checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

_LISTED = 20


class CheckpointError(ValueError):
    """Reports a checkpoint that cannot be used: file or tensor, what was found and what was expected."""


def listing(problems: Sequence[str]) -> str:
    """Return problems as one line; only the first of them if there are many."""
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return "; ".join(problems[:_LISTED]) + more
