"""BLT-DV: a block is denoised with permissive settings, one pass of the whole model verifies it (arXiv 2605.08044).

With the ``closed`` latent a round costs at most one encoder and global call, that of verification (of the encoder two,
over different rows, where the decoder reads byte states). With ``partial``, the paper's o_M, it costs one more: the
last byte is scored and the open patch encoded before the block is denoised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import DecoderRows, Ids
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.block_argument import BlockArgument, BlockMethod
from fastblt.runtime.methods.draft_walk import DraftWalk
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import Round
from fastblt.runtime.methods.replay_profile import ACCEPTANCE, Rates, ReplayError, ReplayProfile, rate_for
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.requests import Steps, draft_with_block, score_with_block
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session


@dataclass(frozen=True)
class DiffusionVerification(BlockMethod):
    """Denoises blocks as drafts, which are verified; lossless."""

    lossless: bool = True

    @classmethod
    def parse(cls, argument: str) -> DiffusionVerification:
        """Parse the argument of ``dv:B@RULE`` and its options, see `BlockArgument`."""
        return cls(BlockArgument.parse("dv", argument, rule="one"))

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Implement `Replayable.replay_profile`.

        With the open patch's latent, the row before the block is the model's own: what it drafts is always kept.
        """
        argument = self.argument
        acceptance = rates.needed(self.name, ACCEPTANCE)
        clean_drafts = argument.latent_for(config) == "closed"
        sure = argument.clean_first and not clean_drafts
        if sure and acceptance * argument.size < 1:
            raise ReplayError(
                f"--replay: found acceptance={acceptance:g} for {self.name}, expected at least "
                f"{1 / argument.size:g}: its first byte is always kept"
            )
        rate = rate_for(acceptance * argument.size - sure, argument.size - sure)
        return ReplayProfile(
            rate,
            rate,
            acceptance=acceptance,
            steps=argument.replay_steps(rates),
            clean_first=argument.clean_first,
            clean_drafts=clean_drafts,
        )

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Generate without end; the first round scores the prompt, which yields the first byte."""
        yield sample_next(session, sampler)
        rounds = self._reuse if self.argument.latent_for(session.config) == "closed" else self._recompute
        while True:
            yield rounds(session, sampler)

    def _reuse(self, session: Session, sampler: Sampler) -> Steps[Round]:
        """Draft from the newest closed latent by the decoder alone."""
        walk = DraftWalk(sampler)
        if not walk.goes_on:
            return (yield from verify(session, sampler, walk.finish(), in_parts=True))
        draft = yield from self.argument.denoise(sampler, draft_with_block)
        return (yield from verify(session, sampler, draft, in_parts=True))

    def _recompute(self, session: Session, sampler: Sampler) -> Steps[Round]:
        """Score the last byte, draft from the open patch's latent; the last byte's row verifies the first draft."""
        kept: list[DecoderRows] = []
        walk = DraftWalk(sampler)
        if not walk.goes_on:
            return (yield from verify(session, sampler, walk.finish(), in_parts=True))

        def first_pass(block: Ids) -> Steps[tuple[DecoderRows, DecoderRows]]:
            before, rows = yield from score_with_block(block, "partial")
            kept.append(before.part(-1).copy())
            return before, rows

        draft = yield from self.argument.denoise(sampler, first_pass)
        return (yield from verify(session, sampler, draft, in_parts=True, before=kept[0]))


ENTRY = MethodEntry(
    name="dv",
    syntax="dv:B@RULE",
    examples=("dv:8@one",),
    summary="diffusion with verification: blocks of B bytes are denoised, the model verifies them",
    parse=DiffusionVerification.parse,
    needs="BLT-D",
    audited=("dv:8@one", "dv:8@0.3", "dv:8@eb1.5", "dv:8@one+partial"),
    tuned=("dv:4@one", "dv:6@one", "dv:8@one", "dv:12@one", "dv:16@one"),
    traced=lambda config: (f"dv:{config.block_size}@one",) if config.block_size else (),
)
