"""Collects a draft token by token, along a grammar where there is one.

A draft ends where the grammar forces more than a few of the next tokens: those need no decoder row of their own, and go
into the same verification, behind what was drafted. Through a few forced ones it goes on: their rows cost less than
another verification.
"""

from __future__ import annotations

from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.sequence.sampling import Distribution, Draft, Sampler

#: Most tokens of a draft, forced ones included: the room behind the longest text.
_LONGEST = DRAFT_SLACK - 1
#: Most forced tokens that are drafted like others.
_FEW = 2


class DraftWalk:
    """Walks from the end of the text; `finish` goes back there.

    Args:
        sampler: chooses the tokens.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._start = sampler.matcher.length if sampler.matcher is not None else 0
        self.tokens: list[int] = []
        """Those that have been drafted."""
        self._proposals: list[Distribution | None] = []
        self._forced = sampler.forced(_LONGEST)
        self._stuck = False
        """Whether walking on would exceed the bounds of a step. Verification decides whether the text gets there."""

    @property
    def goes_on(self) -> bool:
        """Return whether the token that follows is to be drafted: few are forced, and there is no end before it."""
        if len(self._forced) > _FEW or self._stuck:
            return False
        matcher = self._sampler.matcher
        return matcher is None or (not matcher.ended and (not self.tokens or self._sampler.can_draw()))

    def add(self, rows: DecoderRows, index: int) -> int:
        """Draft the token that a row is about, and return it."""
        token, q = self._sampler.draw(rows, index)
        self.tokens.append(token)
        self._proposals.append(q)
        try:
            self._sampler.advance(token)
        except GrammarError:
            self._stuck = True
        else:
            self._forced = self._sampler.forced(_LONGEST - len(self.tokens))
        return token

    def finish(self) -> Draft:
        """Return the draft, with the tokens that are forced behind it; at least one token in all."""
        if self._sampler.matcher is not None:
            self._sampler.matcher.rewind(self._start)
        return Draft([*self.tokens, *self._forced], self._proposals, forced=len(self._forced))
