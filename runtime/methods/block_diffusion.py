"""BLT-D: blocks of bytes are denoised and committed without verification (paper, Algorithm 1; `method.md` "BLT-D").

A block costs at most one encoder and global call (``partial``: always one) and a decoder call a step. The keys and
values of the bytes of the last block are computed in the first step's call, whose rows they join.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.backend import DecoderRows, Ids
from fastblt.runtime.methods.block_argument import BlockArgument
from fastblt.runtime.methods.denoising import denoise
from fastblt.runtime.methods.method import Origin, Round
from fastblt.runtime.sampling import Sampler
from fastblt.runtime.session import Session


@dataclass(frozen=True)
class BlockDiffusion:
    """Blocks of ``size`` bytes; the text is the model's own, not the autoregressive method's."""

    argument: BlockArgument
    lossless: bool = False

    @classmethod
    def parse(cls, argument: str) -> BlockDiffusion:
        """The method of ``d:B@RULE`` and its options, see `BlockArgument`."""
        return cls(BlockArgument.parse("d", argument, rule="0.7", latent="closed"))

    @property
    def name(self) -> str:
        """As the user gives it."""
        return self.argument.name

    def check(self, config: BltConfig) -> None:
        """Only a model with a [MASK] row, and blocks no longer than those it was trained on."""
        self.argument.check(config)

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Round]:
        """Generate for ever; the first round scores the prompt."""
        argument = self.argument
        origins: list[Origin] = ["denoised"] * argument.size

        def first_pass(block: Ids) -> tuple[DecoderRows, DecoderRows]:
            return session.score_with_block(block, argument.latent)

        while True:
            draft = denoise(
                session, sampler, argument.size, argument.rule, first_pass, clean_first=argument.clean_first
            )
            session.append(draft.tokens)
            yield Round(tuple(draft.tokens), tuple(origins))
