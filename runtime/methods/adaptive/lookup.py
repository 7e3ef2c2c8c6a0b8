"""Decides when prompt lookup pays: the text's end occurred before, and what followed then costs no call to draft.

The chance that a byte is kept is learned by how many bytes match before it. It is learned from every round, whoever
drafted: what was looked up is compared with what was written. So nothing has to be tried.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from threading import Lock

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.methods.adaptive.estimates import LinearCost
from fastblt.runtime.methods.method import Round
from fastblt.runtime.methods.prompt_lookup import look_up
from fastblt.runtime.sequence.requests import Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

#: Longest draft: with the byte before it, it can still share a call with other texts.
LONGEST_LOOKUP = SHARED_ROWS - 1
#: Bounds between classes of matched bytes.
_MATCHED = (6, 8, 12, 16, 24, 32, 48)
#: Lookup is taken where a byte is expected to take less than this part of what it takes otherwise.
_CLEARLY = 0.9


class LookupDrafter:
    """Drafts by prompt lookup where that is expected to be fastest, and holds what has been learned about it.

    Args:
        verification: the seconds of a call that verifies drafts of some length, which other drafters observe too.
        forget: part of a class's evidence that a new observation replaces.
    """

    def __init__(self, verification: LinearCost, forget: float = 0.02) -> None:
        self._verification = verification
        self._keep = 1.0 - forget
        self._evidence = [(2.0, 1.0)] * (len(_MATCHED) + 1)
        """Of each class: the weight of its bytes, and of those that were kept."""
        self._observing = Lock()

    def chance(self, matched: int) -> float:
        """Return the chance of a byte that ``matched`` bytes before it speak for."""
        seen, kept = self._evidence[bisect_right(_MATCHED, matched)]
        return kept / seen

    def worth(self, matched: int, most: int, seconds_per_byte: float) -> int:
        """Return how many bytes are worth verifying; 0 where another drafter is expected to be as fast.

        Args:
            matched: bytes at the end of the text that occurred before.
            most: bytes that were looked up.
            seconds_per_byte: of the fastest other drafter.
        """
        each = self._verification.each
        count, expected, survival = 0, 1.0, 1.0
        while count < most:
            survival *= self.chance(matched + count)
            if survival * seconds_per_byte <= each:
                break
            count, expected = count + 1, expected + survival
        seconds = self._verification.fixed + each * count
        return count if seconds < _CLEARLY * seconds_per_byte * expected else 0

    def round(self, session: Session, sampler: Sampler, drafted: list[int]) -> Steps[Round]:
        """Verify what was looked up."""
        began = session.now()
        found = yield from look_up(session, sampler, drafted)
        self._verification.observe(len(drafted), session.now() - began)
        return found

    def observe(self, matched: int, looked_up: Sequence[int], written: Sequence[int]) -> None:
        """Learn from what was written after a text of which ``matched`` bytes at the end occurred before."""
        keep = self._keep
        with self._observing:
            for index, (guess, token) in enumerate(zip(looked_up, written, strict=False)):
                kind = bisect_right(_MATCHED, matched + index)
                weight, kept = self._evidence[kind]
                self._evidence[kind] = (weight * keep + 1.0, kept * keep + (guess == token))
                if guess != token:
                    return
