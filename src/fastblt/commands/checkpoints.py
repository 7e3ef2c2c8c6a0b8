"""Opens the checkpoint that a command was given, and prints what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from fastblt.models.formats.hub import locate
from fastblt.models.formats.hub_id import is_hub_id

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint


def read_checkpoint(
    console: Console, name: str, *, patcher: str | None, document_masks: bool | None = None
) -> Checkpoint:
    """Open a checkpoint; print its layout and, of what comes from the hub, the commit.

    Args:
        console: to print to.
        name: see `fastblt.models.formats.open.open_checkpoint`, like the others.
        patcher: of another patcher.
        document_masks: whether documents are masked.

    Raises:
        CheckpointError: it cannot be used.
        ConfigError: its configuration is invalid.
    """
    from fastblt.models.formats.open import open_checkpoint

    with console.status("reading the checkpoint"):
        found = locate(name)
        other = None if patcher is None else locate(patcher)
        source = open_checkpoint(
            found.folder, patcher=None if other is None else other.folder, document_masks=document_masks
        )
    console.print(f"{found.name}: found {source.layout.description}", soft_wrap=True)
    if other is not None and is_hub_id(other.name):
        console.print(f"{other.name}: found the entropy model", soft_wrap=True)
    return source
