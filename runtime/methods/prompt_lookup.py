"""Prompt lookup: what followed an earlier occurrence of the text's end is the draft (Saxena, 2023).

A draft costs no call of the model. It pays where a text repeats itself or its prompt: edited code, tables, lists. Where
the end of the text has not occurred before, a round is one of ``ar``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BYTE_OFFSET
from fastblt.runtime.backends.protocol import DRAFT_SLACK
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import MethodError, Round
from fastblt.runtime.methods.suffix_automaton import SuffixAutomaton
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.requests import Steps
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session

#: Shortest earlier occurrence that is continued, tokens.
SHORTEST_MATCH = 4


class History:
    """Reads a session's tokens as they are kept, and finds how they may go on.

    Drafts are read by nobody here until verification has kept them, so nothing is ever taken back.
    """

    def __init__(self) -> None:
        self._text = SuffixAutomaton()
        self._read = 0

    def read(self, session: Session) -> None:
        """Read the tokens that the session has kept since the last call."""
        self._text.extend(session.tokens[self._read :].tolist())
        self._read = session.length

    @property
    def matched(self) -> int:
        """Return how many tokens at the end of the text occurred before in the same order."""
        return self._text.matched

    def continuation(self, most: int) -> list[int]:
        """Return the bytes that may follow, at most ``most``; none where fewer than `SHORTEST_MATCH` tokens match."""
        if self._text.matched < SHORTEST_MATCH:
            return []
        found = self._text.continuation(most)
        special = next((index for index, token in enumerate(found) if token < BYTE_OFFSET), most)
        return found[:special]


@dataclass(frozen=True)
class PromptLookup:
    """Drafts at most ``k`` bytes that followed the text's end before; lossless."""

    k: int
    lossless: bool = True

    @classmethod
    def parse(cls, argument: str) -> PromptLookup:
        """Parse the argument of ``lookup:K``."""
        if not argument.isascii() or not argument.isdigit() or not 1 <= int(argument) < DRAFT_SLACK:
            raise MethodError(
                f"method 'lookup:{argument}': found draft length {argument!r}, expected 1..{DRAFT_SLACK - 1}"
            )
        return cls(int(argument))

    @property
    def name(self) -> str:
        """Return the complete name."""
        return f"lookup:{self.k}"

    def check(self, config: BltConfig) -> None:
        """Accept every model."""

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Generate without end; the first round scores the prompt, which yields the first byte."""
        yield sample_next(session, sampler)
        history = History()
        while True:
            history.read(session)
            drafted = history.continuation(self.k)
            yield look_up(session, sampler, drafted) if drafted else sample_next(session, sampler)


def look_up(session: Session, sampler: Sampler, drafted: list[int]) -> Steps[Round]:
    """Verify bytes that nothing was drawn for: a sampled byte is kept where the model's own sample equals it."""
    return (yield from verify(session, sampler, Draft(drafted), in_parts=False))


ENTRY = MethodEntry(
    name="lookup",
    syntax="lookup:K",
    examples=("lookup:12",),
    summary="prompt lookup: K bytes that followed the same text before, the model verifies them",
    parse=PromptLookup.parse,
    audited=("lookup:12",),
    tuned=("lookup:8", "lookup:16"),
)
