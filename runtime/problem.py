"""Describes what a machine lacks, so that errors and `fastblt doctor` report it alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Holds what was found and what was expected, and what to do about it."""

    reason: str
    """Without a full stop: ``found no cuDNN, expected cuDNN 9``."""
    remedy: str
    """A command where there is one; empty where nothing is known."""

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason
