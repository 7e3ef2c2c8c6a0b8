"""Autoregressive decoding: score, choose, append (the generation of BLT itself, arXiv 2412.09871)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import MethodError, Round
from fastblt.runtime.methods.replay_profile import Rates, ReplayProfile
from fastblt.runtime.sequence.requests import Steps, score
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session


@dataclass(frozen=True)
class Autoregressive:
    """Decodes one byte per round: one patcher and one decoder row; encoder and global only when a patch closes."""

    name: str = "ar"
    lossless: bool = True

    @classmethod
    def parse(cls, argument: str) -> Autoregressive:
        """Parse the argument of ``ar``: there is none."""
        if argument:
            raise MethodError(f"method 'ar:{argument}': found an argument, expected plain 'ar'")
        return cls()

    def check(self, config: BltConfig) -> None:
        """Accept every model."""

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Implement `Replayable.replay_profile`: nothing is drafted, so no rate applies."""
        return ReplayProfile()

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Generate without end; the session's last token is the last byte of the prompt."""
        while True:
            yield sample_next(session, sampler)


def sample_next(session: Session, sampler: Sampler) -> Steps[Round]:
    """Score the tokens that are not scored, and append the next one."""
    rows = yield from score()
    token = sampler.choose(rows, -1)
    sampler.advance(token)
    logprobs = sampler.log_probabilities(rows.logits[-1:], [token])
    session.append([token])
    return Round((token,), ("sampled",), logprobs=logprobs)


ENTRY = MethodEntry(
    name="ar",
    syntax="ar",
    examples=("ar",),
    summary="autoregressive: one byte per step",
    parse=Autoregressive.parse,
    audited=("ar",),
    benchmarked=("ar",),
    tuned=("ar",),
    traced=lambda config: ("ar",),
)
