"""Provides checkpoints of random weights, to measure what a geometry costs before anything is trained.

Wherever a checkpoint is read, ``random:PRESET`` names such a checkpoint. Its model is called ``PRESET-random``, and so
are a bundle made of it and every table and report about that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastblt.models.config import BltConfig
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.names import PATCHER_PREFIX, Pieces
from fastblt.models.presets import preset

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint
    from fastblt.models.formats.separate_patcher import StoredPatcher

PREFIX = "random:"


class RandomWeights:
    """Opens ``random:PRESET``, which has no files."""

    name = "random"
    description = "random weights"
    title = "`random:PRESET`"
    contents = "nothing: random weights of a preset's geometry, to measure cost with"
    recognized_by = "the prefix"
    files: tuple[str, ...] = ()
    weight_files: tuple[str, ...] = ()
    hub_files: tuple[str, ...] = ()
    patcher_prefix = PATCHER_PREFIX

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Implement `Layout.recognizes`; raise ConfigError for a preset that does not exist."""
        if not str(path).startswith(PREFIX):
            return False
        preset(preset_name(path))
        return True

    def open(self, path: Path, patcher: Path | None) -> Checkpoint:
        """Implement `Layout.open`; no patcher may be passed."""
        from fastblt.models.formats.checkpoint import Checkpoint
        from fastblt.models.formats.random_store import RandomStore, random_config

        if patcher is not None:
            raise CheckpointError(f"{path}: found a patcher {patcher} for it, expected none")
        config = random_config(preset_name(path))
        return Checkpoint(self, path, config, RandomStore(config), self.pieces(config))

    def open_patcher(self, path: Path) -> StoredPatcher:
        """Implement `Layout.open_patcher`: raise CheckpointError, because no patcher has been trained."""
        raise CheckpointError(f"{path}: found random weights, expected a trained entropy model")

    def pieces(self, config: BltConfig) -> Pieces:
        """Implement `Layout.pieces`: every tensor has our name."""
        from fastblt.models.formats.checkpoint import identity_pieces

        return identity_pieces(config)


def preset_name(path: Path) -> str:
    """Return the PRESET of ``random:PRESET``."""
    return str(path).removeprefix(PREFIX)
