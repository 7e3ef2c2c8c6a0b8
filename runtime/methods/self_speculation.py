"""BLT-S: the decoder drafts past patch boundaries, one pass of the whole model verifies (`method.md` "BLT-S").

A round costs ``k`` decoder rows and *one* encoder and global call. The paper makes two: one to encode the prefix
before it drafts, one to verify. But verification has computed the latents of all complete patches of what it
accepted, and everything is causal, so they stay valid for the next draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.runtime.methods.method import Choose, Origin, Round
from fastblt.runtime.session import Session


@dataclass(frozen=True)
class SelfSpeculation:
    """Greedy BLT-S with drafts of ``k`` bytes; its output is the autoregressive method's, byte for byte."""

    k: int
    greedy_only: bool = True

    @property
    def name(self) -> str:
        """As the user gives it."""
        return f"s:{self.k}"

    def rounds(self, session: Session, choose: Choose) -> Iterator[Round]:
        """Generate for ever; the first round scores the prompt, which gives the first byte."""
        first = choose(session.score(), -1)
        session.append([first])
        yield Round((first,), ("sampled",))
        while True:
            yield self._round(session, choose)

    def _round(self, session: Session, choose: Choose) -> Round:
        start = session.length
        draft = session.draft(self.k)[0].tolist()
        session.append(draft)
        rows = session.score()  # row j is about the token after draft byte j; row 0 stands before the draft
        accepted = 0
        while accepted < self.k and choose(rows, accepted) == draft[accepted]:
            accepted += 1
        following = choose(rows, accepted)
        session.rewind(start + accepted)
        session.append([following])
        origins: list[Origin] = ["accepted"] * accepted
        origins.append("free" if accepted == self.k else "corrected")
        return Round((*draft[:accepted], following), tuple(origins), tuple(draft[accepted:]), self.k)
