"""Decides whether what a try came to is what it may come to."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from campaign.part import Counts, failed
from campaign.worker import origin, unexpected


class Judge:
    """Makes several calls in one try: each must return, or raise an error that users expect."""

    def __init__(self) -> None:
        self.counts = Counts(tries=1)
        self.refusals: list[str] = []

    def call(self, what: Callable[..., Any], *args: Any, plain: bool = False, **options: Any) -> Any:
        """Return what a call returns; None if it raised, which is counted as a failure unless the error is expected.

        Args:
            what: to call.
            args: of the call.
            plain: whether `ValueError` and `TypeError` themselves are expected: arguments of users, not files.
            options: of the call.
        """
        try:
            return what(*args, **options)
        except Exception as error:
            self.refusals.append(str(error))
            if not (is_expected(error) or (plain and _is_raised_here(error))):
                self.counts.failures += unexpected(error).failures
            elif len(str(error).splitlines()) != 1:
                self.fail("other", f"{type(error).__name__} of more than one line from {origin(error)}")
            return None

    def fail(self, kind: Any, what: str) -> None:
        """Count a failure."""
        self.counts.failures += failed(kind, what).failures

    def result(self) -> Counts:
        """Return the counts of the try."""
        if not self.counts.failures:
            self.counts.refused = min(len(self.refusals), 1)
            self.counts.ok = 1 - self.counts.refused
        return self.counts


def _is_raised_here(error: Exception) -> bool:
    """Return whether an error is one about arguments that this package raises itself, or Python for unknown options."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "/fastblt/" in last.filename and (last.line or "").startswith("raise ")
    unknown = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
    return unknown or (ours and isinstance(error, ValueError | TypeError))


def is_expected(error: BaseException) -> bool:
    """Return whether an error is one that this package defines for its users."""
    return isinstance(error, ValueError) and type(error).__module__.startswith("fastblt.")
