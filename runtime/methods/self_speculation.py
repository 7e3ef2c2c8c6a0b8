"""BLT-S: the decoder drafts past patch boundaries, one pass of the whole model verifies (arXiv 2605.08044).

A draft reads the newest latent of a closed patch, which verification has left behind. With ``partial`` it reads that of
the open patch so far, o_M, for which encoder and global transformer run once more in each round: these are the paper's
two calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import DRAFT_SLACK, DecoderRows
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.draft_walk import DraftWalk
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import MethodError, Round
from fastblt.runtime.methods.replay_profile import ACCEPTANCE, Rates, ReplayProfile, rate_for
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.requests import Latent, Steps, draft
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session


@dataclass(frozen=True)
class SelfSpeculation:
    """Decodes by BLT-S with drafts of ``k`` bytes; lossless."""

    k: int
    latent: Latent = "closed"
    """Which latent a draft reads."""
    lossless: bool = True

    @classmethod
    def parse(cls, argument: str) -> SelfSpeculation:
        """Parse the argument of ``s:K`` or ``s:K+partial``."""
        length, *options = argument.split("+")
        if not length.isascii() or not length.isdigit() or not 1 <= int(length) < DRAFT_SLACK:
            raise MethodError(f"method 's:{argument}': found draft length {length!r}, expected 1..{DRAFT_SLACK - 1}")
        if options not in ([], ["partial"]):
            raise MethodError(f"method 's:{argument}': found options {options}, expected none or partial")
        return cls(int(length), "partial" if options else "closed")

    @property
    def name(self) -> str:
        """Return the complete name."""
        return f"s:{self.k}" + "+partial" * (self.latent == "partial")

    def check(self, config: BltConfig) -> None:
        """Accept every model."""

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Implement `Replayable.replay_profile`: a rate that keeps the wanted part of k drafted bytes on average."""
        acceptance = rates.needed(self.name, ACCEPTANCE)
        rate = rate_for(acceptance * self.k, self.k)
        return ReplayProfile(rate, rate, acceptance=acceptance)

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Generate without end; the first round scores the prompt, which yields the first byte."""
        yield sample_next(session, sampler)
        while True:
            yield self._round(session, sampler)

    def _round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        drafted = yield from draft_bytes(sampler, self.k, self.latent)
        return (yield from verify(session, sampler, drafted, in_parts=False))


def draft_bytes(sampler: Sampler, count: int, latent: Latent) -> Steps[Draft]:
    """Draft bytes by the decoder, each from the row of the byte before it; all rows read one latent."""
    if sampler.takes_best:
        tokens, _ = yield from draft(count, latent=latent)
        return Draft(tokens.tolist())
    walk = DraftWalk(sampler)

    def pick(row: DecoderRows) -> tuple[int, bool]:
        return walk.add(row, 0), walk.goes_on

    if walk.goes_on:
        yield from draft(count, pick, latent)
    return walk.finish()


ENTRY = MethodEntry(
    name="s",
    syntax="s:K",
    examples=("s:8",),
    summary="self-speculation: the decoder drafts K bytes, the model verifies them",
    parse=SelfSpeculation.parse,
    audited=("s:4", "s:8", "s:16"),
    benchmarked=("s:4", "s:8", "s:16"),
    tuned=("s:2", "s:3", "s:4", "s:6", "s:8", "s:12", "s:16"),
    traced=lambda config: ("s:8",),
)
