"""BLT-D: blocks of bytes are denoised and committed without verification (arXiv 2605.08044, Algorithm 1).

A block costs at most one encoder and global call (``partial``: always one) and a decoder call per step. The keys and
values of the bytes of the last block are computed in the first step's call, whose rows they join.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.block_argument import BlockArgument, BlockMethod
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import Origin, Round
from fastblt.runtime.methods.replay_profile import Rates, ReplayProfile
from fastblt.runtime.sequence.requests import Steps, score_with_block
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session


@dataclass(frozen=True)
class BlockDiffusion(BlockMethod):
    """Denoises blocks; the text is not that of the autoregressive method."""

    lossless: bool = False

    @classmethod
    def parse(cls, argument: str) -> BlockDiffusion:
        """Parse the argument of ``d:B@RULE`` and its options, see `BlockArgument`."""
        return cls(BlockArgument.parse("d", argument, rule="0.7"))

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Implement `Replayable.replay_profile`: every byte is kept, blocks take the wanted steps."""
        return ReplayProfile(steps=self.argument.replay_steps(rates), clean_first=self.argument.clean_first)

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Generate without end; the first round scores the prompt."""
        while True:
            yield self._round(session, sampler)

    def _round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        argument, latent = self.argument, self.argument.latent_for(session.config)
        origin: Origin = "denoised"
        block = yield from argument.denoise(sampler, lambda masked: score_with_block(masked, latent))
        session.append(block.tokens)
        return Round(tuple(block.tokens), (origin,) * argument.size, logprobs=block.logprobs)


ENTRY = MethodEntry(
    name="d",
    syntax="d:B@RULE",
    examples=("d:8@0.7", "d:8@eb1.0"),
    summary="diffusion: blocks of B bytes are denoised and kept unverified",
    parse=BlockDiffusion.parse,
    needs="BLT-D",
    audited=("d:8@0.7", "d:8@eb1.0"),
    tuned=("d:4@0.7", "d:8@0.7", "d:8@eb1.0", "d:16@0.7"),
    traced=lambda config: (f"d:{config.block_size}@0.7",) if config.block_size else (),
)
