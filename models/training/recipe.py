"""Describes a training run: one frozen dataclass, read from JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastblt.models import limits
from fastblt.models.config import BltConfig, ConfigError, build_dataclass, expect, expect_integer, expect_number
from fastblt.models.presets import preset
from fastblt.models.reading import read_json


@dataclass(frozen=True)
class TrainConfig:
    """Holds a training recipe; `fastblt.models.training.loop.Trainer` runs it.

    The schedule follows ``budget_seconds`` of training: processor seconds of all threads on a CPU (a paused or
    crowded machine does not shorten the run), wall seconds on a GPU.
    """

    model: str | BltConfig
    """Name of a preset, or a geometry: what a checkpoint's config.json has."""
    budget_seconds: float
    """Training time, without the patcher's."""
    patcher_seconds: float
    """Training time of the entropy patcher, which is trained first and then frozen; a run that starts from a checkpoint
    skips it."""
    bytes_per_patch: float = 4.0
    """The patcher's threshold is bisected to this average on training text."""
    patch_once: bool = False
    """Whether the patches of all training text are found once, before the model learns, instead of those of every
    window when it is read; the patcher then also reads the text before a window. Saves time after about one epoch."""
    seed: int = 1
    window: int = 256
    """Tokens of a training window, BOS included."""
    long_window: int = 1024
    """Tokens of a window in the last part of the run, which teaches positions that short windows do not contain."""
    long_fraction: float = 0.12
    """Part of the run that uses ``long_window``; the number of tokens per step stays the same."""
    batch: int = 32
    """Windows of ``window`` tokens per step."""
    blocks: int = 10
    """Corrupted blocks per 256 tokens of a window."""
    mid_patch: float = 0.4
    """Part of the blocks that start anywhere instead of at the first byte of a patch."""
    fully_masked: float = 0.2
    """Part of the blocks with every byte masked."""
    distilled: float = 0.0
    """Part of the blocks that contain the model's own greedy draft instead of the text's bytes (see `distillation`)."""
    position_decay: float | None = None
    """The loss of a masked byte weighs exp(-i / position_decay), i being its place in the block, with a mean weight of
    1: verification keeps nothing behind the first byte that is wrong. None: all places weigh the same."""
    mask_weight: tuple[tuple[float, float], ...] = ((0.0, 0.1), (0.35, 1.0))
    """Weight of the masked loss: (part of the run, weight) points, linear between them, constant after the last."""
    stale_segments: int = 3
    """Stretches of 4-16 bytes per 256 tokens that read the latent from before the stretch, as drafts do."""
    matrix_lr: float = 0.02
    """Muon's learning rate, for matrices."""
    embedding_lr: float = 3e-3
    """AdamW's learning rate, for embeddings, norms and output matrices."""
    weight_decay: float = 0.01
    warmup: float = 0.02
    """Part of the run over which the learning rate rises."""
    hold: float = 0.4
    """Part of the run after which the learning rate falls linearly to zero."""
    clip: float = 1.0
    """Gradient norm limit."""
    eval_every: float = 600.0
    """Seconds of training between evaluations."""
    save_every: float = 60.0
    """Seconds of training between saves."""

    def __post_init__(self) -> None:
        """Validate every field.

        Raises:
            ConfigError: a field is out of range; the message names it.
        """
        expect_integer("seed", self.seed, limits.SEED, 0)
        expect_integer("stale_segments", self.stale_segments, limits.BLOCKS, 0)
        expect_integer("blocks", self.blocks, limits.BLOCKS)
        for name in ("budget_seconds", "patcher_seconds", "eval_every", "save_every"):
            expect_number(name, getattr(self, name), limits.SECONDS, positive=True)
        for name in ("matrix_lr", "embedding_lr", "clip"):
            expect_number(name, getattr(self, name), limits.FACTOR, positive=True)
        if self.position_decay is not None:
            expect_number("position_decay", self.position_decay, limits.FACTOR, positive=True)
        expect_number("weight_decay", self.weight_decay, limits.FACTOR)
        expect_number("bytes_per_patch", self.bytes_per_patch, limits.PATCH_LENGTH, positive=True)
        for name in ("mid_patch", "fully_masked", "distilled", "long_fraction", "warmup", "hold"):
            expect(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a part, from 0 to 1")
        expect_integer("batch", self.batch, limits.STEP_TOKENS)
        for name in ("window", "long_window"):
            tokens = getattr(self, name)
            expect(tokens >= 32, name, tokens, "at least 32 tokens")
            expect_integer(name, tokens, limits.STEP_TOKENS, 32)
        tokens = self.batch * max(self.window, self.long_window)
        expect(tokens <= limits.STEP_TOKENS, "batch", self.batch, f"at most {limits.STEP_TOKENS} tokens in a batch")
        points = [at for at, _ in self.mask_weight]
        expect(bool(points) and points == sorted(points), "mask_weight", self.mask_weight, "points in rising order")
        for point in self.mask_weight:
            for value in point:
                expect_number("mask_weight", value, limits.FACTOR)

    def mask_weight_at(self, done: float) -> float:
        """Return the weight of the masked loss when the part ``done`` of the run is over."""
        at, weights = zip(*self.mask_weight, strict=True)
        return float(np.interp(done, at, weights))

    @property
    def model_config(self) -> BltConfig:
        """Return the geometry; the threshold is replaced when the patcher has been trained.

        Raises:
            ConfigError: there is no such preset, or such a model is not trained from a recipe.
        """
        config = preset(self.model) if isinstance(self.model, str) else self.model
        latent = config.block_latent
        expect(config.decoder_input != "mixed", "model.decoder_input", "mixed", "encoder or embedding")
        expect(latent == "closed", "model.block_latent", latent, "closed: blocks are trained on closed patches")
        expect(
            not self.patch_once or config.patcher is not None,
            "patch_once",
            self.patch_once,
            "false: the model has no patcher",
        )
        return config

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read a recipe.

        Raises:
            ConfigError: the file cannot be read or does not describe a recipe; the message names it.
        """
        data = read_json(path, ConfigError, "a training recipe", constants=True)
        try:
            geometry = data.get("model") if isinstance(data, dict) else None
            if isinstance(geometry, dict):
                model = build_dataclass(BltConfig, geometry, "model.")
                config = dataclasses.replace(build_dataclass(cls, {**data, "model": model.name}), model=model)
            else:
                config = build_dataclass(cls, data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        assert isinstance(config, cls)
        return config
