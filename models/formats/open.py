"""Opens checkpoints of every layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from fastblt.models.formats.hub import locate
from fastblt.models.formats.hub_id import is_hub_id, parse_hub_id
from fastblt.models.formats.registry import recognize

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint


def check_path(path: str | Path) -> None:
    """Check what can be checked of a checkpoint before PyTorch is imported or anything is downloaded.

    Args:
        path: as in `open_checkpoint`; an id of the hub passes if it is well-formed.

    Raises:
        CheckpointError: there is no checkpoint, or the id is malformed.
        ConfigError: its ``config.json`` cannot be read, or it names a preset that does not exist.
    """
    if is_hub_id(str(path)):
        parse_hub_id(str(path))
    else:
        recognize(Path(path))


def open_checkpoint(
    path: str | Path, *, patcher: str | Path | None = None, document_masks: bool | None = None
) -> Checkpoint:
    """Open a checkpoint of any layout; account for every tensor, but read none.

    Args:
        path: a folder, ``random:PRESET``, or an id of the Hugging Face hub: ``hf://OWNER/MODEL``, or
            ``hf://OWNER/MODEL@REVISION`` for a commit, tag or branch.
        patcher: folder or hub id of an entropy model, or of a checkpoint that has one, to use instead of the
            checkpoint's own. The patches of a checkpoint that needed none are then closed by entropy.
        document_masks: whether self-attention stays inside a document; None: as in the software that the checkpoint's
            layout belongs to.

    Raises:
        CheckpointError: there is none, files are missing or damaged, or tensors do not fit the configuration.
        ConfigError: its configuration is invalid, or describes something that this project does not compute.
    """
    source = locate(str(path)).folder
    layout = recognize(source)
    checkpoint = layout.open(source, None if patcher is None else locate(str(patcher)).folder)
    if document_masks is not None:
        config = dataclasses.replace(checkpoint.config, document_masks=document_masks)
        checkpoint = dataclasses.replace(checkpoint, config=config)
    checkpoint.check()
    return checkpoint
