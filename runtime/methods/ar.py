"""Autoregressive decoding: score, choose, append (BLT's own generation, `method.md` "BLT")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.runtime.methods.method import Choose, Round
from fastblt.runtime.session import Session


@dataclass(frozen=True)
class Autoregressive:
    """One byte a round: one patcher and one decoder row; encoder and global only when a patch closes."""

    name: str = "ar"
    greedy_only: bool = False

    def rounds(self, session: Session, choose: Choose) -> Iterator[Round]:
        """Generate for ever; the session's last token is the last byte of the prompt."""
        while True:
            token = choose(session.score(), -1)
            session.append([token])
            yield Round((token,), ("sampled",))
