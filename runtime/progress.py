"""Defines how long work reports its progress: exports, compiles, benchmarks, audits, evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Called as ``on_progress(done, total, what)`` at the beginning of the work and after each of its steps: ``done`` of
#: ``total`` steps are finished, 0 <= done <= total, and ``total`` stays the same; ``what`` names the step in a word
#: or two ("onnxruntime/s:8"), and may be empty. It runs inside the work: what it spends is part of measured times
#: only where the work's documentation states so.
OnProgress: TypeAlias = Callable[[int, int, str], None]


def no_progress(done: int, total: int, what: str) -> None:
    """Ignore a report of progress."""


def part_of(on_progress: OnProgress, before: int, total: int, name: str = "") -> OnProgress:
    """Return the callback of one part of a larger work.

    Args:
        on_progress: the callback of the whole work.
        before: steps of the parts before this one.
        total: steps of all parts.
        name: put in front of what the part reports.
    """

    def report(done: int, _: int, what: str) -> None:
        on_progress(before + done, total, f"{name} {what}".strip())

    return report
