"""Makes small training runs with a clock of their own, stops them, and reads what they have written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.training.corpus import Split
from fastblt.models.training.loop import Trainer
from fastblt.models.training.recipe import TrainConfig
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE
from fastblt.models.training.state import Progress

STEP = 0.5
PATCHER_STEPS = 6
MODEL_STEPS = 9
RECIPE = TrainConfig(
    model="tiny",
    budget_seconds=MODEL_STEPS * STEP,
    patcher_seconds=PATCHER_STEPS * STEP,
    bytes_per_patch=3.0,
    window=48,
    long_window=96,
    long_fraction=0.3,
    batch=4,
    blocks=32,
    eval_every=4 * STEP,
    save_every=2 * STEP,
)
QUALITY = {"bits_per_byte": 3.5, "acceptance_s8": 0.25}


def step_clock() -> Callable[[Trainer], float]:
    """Stands still but for half a second at every look, so that each step takes exactly that."""
    looks = itertools.count(1)
    return lambda trainer: next(looks) * STEP


class KilledError(BaseException):
    """What a test raises where a process would die."""


def trainer(text: Split, out: Path, recipe: TrainConfig = RECIPE) -> Trainer:
    return Trainer(recipe, text, text, out)


def kill_after(phase: str, step: int) -> Callable[[Progress, float, dict[str, float]], None]:
    def on_step(progress: Progress, done: float, losses: dict[str, float]) -> None:
        if (progress.phase, progress.step) == (phase, step):
            raise KilledError

    return on_step


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / CHECKPOINT_FOLDER).state_dict()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
