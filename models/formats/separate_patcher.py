"""Joins a model and a patcher that is stored elsewhere, possibly in another layout."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.formats.checkpoint import Checkpoint, expected_shapes
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.layout import Layout
from fastblt.models.formats.names import PATCHER_PREFIX
from fastblt.models.formats.stores import JoinedStore, PartOfStore, TensorStore


@dataclass(frozen=True)
class StoredPatcher:
    """Holds the geometry and the tensors of a patcher."""

    config: StackConfig
    store: TensorStore
    layout: Layout
    """The layout that its tensors are named in."""


def open_patcher(path: Path) -> StoredPatcher:
    """Open the patcher of a checkpoint of any layout, or an entropy model's own folder.

    Raises:
        CheckpointError: there is none, or files are missing or damaged.
        ConfigError: the configuration is invalid.
    """
    from fastblt.models.formats.registry import recognize

    return recognize(path).open_patcher(path)


def patcher_of(checkpoint: Checkpoint) -> StoredPatcher:
    """Return the patcher that is stored among the tensors of a checkpoint.

    Raises:
        CheckpointError: its configuration has none.
    """
    config = checkpoint.config.patcher
    if config is None:
        raise CheckpointError(
            f"{checkpoint.path}: found a checkpoint without an entropy model, expected one that has it"
        )
    of_patcher = (names for name, names in checkpoint.pieces.items() if name.startswith(PATCHER_PREFIX))
    wanted = {piece for names in of_patcher for piece in names}
    return StoredPatcher(config, PartOfStore(checkpoint.store, wanted.__contains__), checkpoint.layout)


def with_patcher(main: Checkpoint, path: Path | None) -> Checkpoint:
    """Return a checkpoint with another patcher, whose patches are closed by entropy.

    Args:
        main: its own patcher, if it has one, is left out.
        path: checkpoint or entropy model; None returns ``main``.
    """
    if path is None:
        return main
    patcher = open_patcher(path)
    rule = main.config.patching
    # The length of a static rule defines its patches; it is no limit to patches of another rule.
    longest = None if rule.mode == "static" else rule.max_patch_length
    patching = dataclasses.replace(rule, mode="entropy", max_patch_length=longest)
    config = dataclasses.replace(main.config, patcher=patcher.config, patching=patching)
    return joined(main.layout, main.path, config, main.store, patcher)


def joined(layout: Layout, path: Path, config: BltConfig, main: TensorStore, patcher: StoredPatcher) -> Checkpoint:
    """Return a checkpoint of a model's tensors and a separate patcher's.

    Args:
        layout: of the model.
        path: of the model.
        config: of both together.
        main: the model's tensors; a patcher among them is left out.
        patcher: the patcher to use.
    """
    ours, theirs = layout.pieces(config), patcher.layout.pieces(config)
    pieces = {name: (theirs if name.startswith(PATCHER_PREFIX) else ours)[name] for name in expected_shapes(config)}
    store = JoinedStore([("", without_patcher(layout, main)), ("", patcher.store)])
    return Checkpoint(layout, path, config, store, pieces)


def without_patcher(layout: Layout, store: TensorStore) -> TensorStore:
    """Return a store without the patcher's tensors, in layouts that store them with the others."""
    prefix = layout.patcher_prefix
    return store if prefix is None else PartOfStore(store, lambda name: not name.startswith(prefix))
