"""BLT-S: the decoder drafts past patch boundaries, one pass of the whole model verifies (arXiv 2605.08044)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import MethodError, Round
from fastblt.runtime.methods.replay_profile import ACCEPTANCE, Rates, ReplayProfile, rate_for
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.sampling import Distribution, Draft, Sampler
from fastblt.runtime.sequence.session import Session


@dataclass(frozen=True)
class SelfSpeculation:
    """Decodes by BLT-S with drafts of ``k`` bytes; lossless."""

    k: int
    lossless: bool = True

    @classmethod
    def parse(cls, argument: str) -> SelfSpeculation:
        """Parse the argument of ``s:K``."""
        if not argument.isascii() or not argument.isdigit() or not 1 <= int(argument) < DRAFT_SLACK:
            raise MethodError(f"method 's:{argument}': found draft length {argument!r}, expected 1..{DRAFT_SLACK - 1}")
        return cls(int(argument))

    @property
    def name(self) -> str:
        """Return the complete name."""
        return f"s:{self.k}"

    def check(self, config: BltConfig) -> None:
        """Accept every model."""

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Implement `Replayable.replay_profile`: a rate that keeps the wanted part of k drafted bytes on average."""
        acceptance = rates.needed(self.name, ACCEPTANCE)
        rate = rate_for(acceptance * self.k, self.k)
        return ReplayProfile(rate, rate, acceptance=acceptance)

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Round]:
        """Generate without end; the first round scores the prompt, which yields the first byte."""
        yield sample_next(session, sampler)
        while True:
            yield verify(session, sampler, draft_bytes(session, sampler, self.k), in_parts=False)


def draft_bytes(session: Session, sampler: Sampler, count: int) -> Draft:
    """Draft bytes by the decoder alone, each from the row of the byte before it."""
    if sampler.takes_best:
        return Draft(session.draft(count)[0].tolist())
    proposals: list[Distribution | None] = []

    def pick(row: DecoderRows) -> tuple[int, bool]:
        token, q = sampler.draw(row, 0)
        proposals.append(q)
        return token, True

    return Draft(session.draft(count, pick)[0].tolist(), proposals)


ENTRY = MethodEntry(
    name="s",
    syntax="s:K",
    examples=("s:8",),
    summary="self-speculation: the decoder drafts K bytes, the model verifies them",
    parse=SelfSpeculation.parse,
    audited=("s:4", "s:8", "s:16"),
    benchmarked=("s:4", "s:8", "s:16"),
    traced=lambda config: ("s:8",),
)
