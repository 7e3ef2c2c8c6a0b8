"""Draws the bytes of a block along a grammar, in whatever order they are decided.

A byte whose predecessors are all decided is drawn from what may follow them. Any other is drawn without the grammar,
and is checked as soon as the bytes before it are known: the block ends before the first byte that may not follow.
"""

from __future__ import annotations

from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows, Ids
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.sequence.sampling import Distribution, Sampler


class LegalBlock:
    """Fills a block; without a grammar every byte is drawn as it is.

    Args:
        sampler: draws the bytes.
        block: int64 [size], all MASK_ID; it is written to.
    """

    def __init__(self, sampler: Sampler, block: Ids) -> None:
        self._sampler, self._block = sampler, block
        self._matcher = sampler.matcher
        self._start = self._matcher.length if self._matcher is not None else 0
        self._walked = 0
        """Leading bytes that the grammar has been walked along."""
        self._over = False
        """Whether no other byte of the block can be used."""

    def draw(self, rows: DecoderRows, row: int, index: int) -> Distribution | None:
        """Decide byte ``index`` from a row, and return what it was drawn from (greedy: None)."""
        if self._walked and not self._over:
            self._over = not self._sampler.can_draw()
        legal = index == self._walked and not self._over
        self._block[index], q = self._sampler.draw(rows, row, masked=legal)
        if self._matcher is not None:
            self._walk()
        return q

    def _walk(self) -> None:
        assert self._matcher is not None
        while not self._over and self._walked < len(self._block) and self._block[self._walked] != MASK_ID:
            if not self._advance(int(self._block[self._walked])):
                self._over = True
                return
            self._walked += 1
            self._over = self._matcher.ended

    def _advance(self, token: int) -> bool:
        """Walk along a token; return False where it may not follow, or the step would exceed its bounds."""
        try:
            return self._sampler.advance(token)
        except GrammarError:
            return False

    def finish(self) -> tuple[list[int], int]:
        """Return the tokens of the draft, and how many of the last ones the grammar forces; the walk goes back."""
        if self._matcher is None:
            return self._block.tolist(), 0
        forced = self._sampler.forced(DRAFT_SLACK - 1 - self._walked)
        self._matcher.rewind(self._start)
        return [*self._block[: self._walked].tolist(), *forced], len(forced)
