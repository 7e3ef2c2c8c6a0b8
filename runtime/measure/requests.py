"""Checks that the requests of all measurements share."""

from __future__ import annotations

#: Most texts that a measurement lets grow at the same time.
MOST_STREAMS = 64


def require_at_least(least: int, **values: int | None) -> None:
    """Check numbers of a request, by the names of their fields; None means that a number was not given.

    Raises:
        ValueError: one of them is less than ``least``.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name}: found {value}, expected a whole number >= {least}")
