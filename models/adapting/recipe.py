"""Describes how a draft decoder is trained: one frozen dataclass, stored with the run."""

from __future__ import annotations

from dataclasses import dataclass

from fastblt.models import limits
from fastblt.models.config import expect, expect_integer, expect_number


@dataclass(frozen=True)
class AdaptConfig:
    """Holds what `fastblt.models.adapting.loop.Adapter` does; the schedule follows ``steps``.

    A step has ``batch`` windows, however many processes and pieces (``accumulate``) share them, so that it is the same
    step with one GPU or eight.
    """

    steps: int = 4_000
    batch: int = 32
    """Windows of a step, all processes together."""
    accumulate: int = 1
    """Pieces in which each process computes its windows of a step, one after the other."""
    window: int = 512
    """Tokens of a window, BOS included."""
    block_size: int = 8
    """Bytes of a block: the longest that the adapted model denoises."""
    rank: int | None = 16
    """Rank of what is added to the decoder's matrices; None: the draft decoder has full matrices of its own."""
    blocks: int = 10
    """Blocks per 256 tokens of a window."""
    mid_patch: float = 0.5
    """Part of the blocks that begin anywhere instead of at the first byte of a patch."""
    anchored: float = 0.75
    """Part of the blocks that follow a row of the draft decoder, as in a single call of it; the others follow a row of
    the decoder itself and read a latent that is one byte newer."""
    fully_masked: float = 0.5
    """Part of the blocks with every byte masked."""
    distilled: float = 0.75
    """Part of the blocks that contain the model's own greedy draft instead of the text's bytes."""
    position_decay: float = 4.0
    """A byte's loss weighs exp(-i / position_decay), i being its place in the block: verification stops at the first
    wrong byte."""
    learning_rate: float = 2e-3
    """Of AdamW, which trains all but full matrices."""
    matrix_lr: float = 0.01
    """Of Muon, which trains full matrices; unused with a rank."""
    weight_decay: float = 0.0
    warmup: float = 0.02
    """Part of the run over which the learning rate rises."""
    hold: float = 0.4
    """Part of the run after which the learning rate falls linearly to zero."""
    clip: float = 1.0
    """Gradient norm limit."""
    seed: int = 1
    checkpoint_activations: bool = False
    """Whether activations inside layers are computed again in the backward pass instead of being kept."""
    eval_every: int = 500
    """Steps between evaluations."""
    save_every: float = 60.0
    """Seconds between saves."""

    def __post_init__(self) -> None:
        """Validate every field.

        Raises:
            ConfigError: a field is out of range; the message names it.
        """
        for name in ("steps", "eval_every"):
            expect_integer(name, getattr(self, name), limits.STEPS)
        for name in ("batch", "accumulate"):
            expect_integer(name, getattr(self, name), limits.STEP_TOKENS)
        expect_integer("block_size", self.block_size, limits.BLOCK_SIZE)
        expect_integer("rank", self.rank, limits.DRAFT_RANK, optional=True)
        expect_integer("blocks", self.blocks, limits.BLOCKS)
        expect_integer("seed", self.seed, limits.SEED, 0)
        expect_integer("window", self.window, limits.STEP_TOKENS, 32)
        least = 2 * self.block_size
        expect(self.window >= least, "window", self.window, f"at least {least} tokens, two blocks")
        tokens = self.batch * self.window
        expect(tokens <= limits.STEP_TOKENS, "batch", self.batch, f"at most {limits.STEP_TOKENS} tokens in a step")
        expect(self.batch % self.accumulate == 0, "accumulate", self.accumulate, f"a divisor of batch={self.batch}")
        for name in ("mid_patch", "anchored", "fully_masked", "distilled", "warmup", "hold"):
            expect(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a part, from 0 to 1")
        for name in ("position_decay", "learning_rate", "matrix_lr", "clip"):
            expect_number(name, getattr(self, name), limits.FACTOR, positive=True)
        expect_number("weight_decay", self.weight_decay, limits.FACTOR)
        expect_number("save_every", self.save_every, limits.SECONDS, positive=True)

    @property
    def blocks_per_window(self) -> int:
        """Return the number of blocks of a window."""
        return max(1, self.blocks * self.window // 256)
