"""Checkpoints of random weights: for measuring what a geometry costs before anything is trained.

Wherever a checkpoint is read for export, ``random:PRESET`` stands for such a one. Its model is named
``PRESET-random``, and so are a bundle made of it and every table and report about that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fastblt.export.embeddings_file import Table, write_tables
from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, expected_shapes
from fastblt.models.config import BltConfig
from fastblt.models.initialisation import initial_std
from fastblt.models.presets import preset

PREFIX = "random:"
_CHUNK = 1 << 22


@contextmanager
def usable_checkpoint(checkpoint: Path, beside: Path) -> Iterator[Path]:
    """The folder that a checkpoint argument means.

    Args:
        checkpoint: a folder, or ``random:PRESET``: its random weights exist in a temporary folder while the body runs.
        beside: that folder is made next to this path.

    Raises:
        ConfigError: no such preset.
    """
    if not str(checkpoint).startswith(PREFIX):
        yield checkpoint
        return
    name = str(checkpoint).removeprefix(PREFIX)
    config = dataclasses.replace(preset(name), name=f"{name}-random")
    beside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{beside.name}.", suffix=".random", dir=beside.parent) as folder:
        write_random_checkpoint(Path(folder) / "checkpoint", config)
        yield Path(folder) / "checkpoint"


def write_random_checkpoint(folder: Path, config: BltConfig, seed: int = 0) -> None:
    """Write a checkpoint folder of fp32 random weights, scaled as training begins; norms are 1.

    No tensor is held in memory as a whole.

    Args:
        folder: created, or replaced.
        config: the model's.
        seed: of the weights.
    """
    tables = {
        name: Table("F32", 4, list(shape), partial(_chunks, name, shape, [seed, index]))
        for index, (name, shape) in enumerate(expected_shapes(config).items())
    }
    with replacing_folder(folder) as new:
        config.save(new / CONFIG_FILE)
        write_tables(new / WEIGHTS_FILE, tables)


def _chunks(name: str, shape: Sequence[int], seed: list[int]) -> Iterator[np.ndarray]:
    size = math.prod(shape)
    rng = np.random.default_rng(seed)
    for first in range(0, size, _CHUNK):
        count = min(_CHUNK, size - first)
        if len(shape) < 2:
            values = np.ones(count, dtype=np.float32)
        else:
            values = rng.standard_normal(count, dtype=np.float32) * np.float32(initial_std(name, shape))
        yield values.view(np.uint8)
