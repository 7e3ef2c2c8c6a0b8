"""``fastblt convert``: writes a checkpoint in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checkpoints import read_checkpoint
from fastblt.commands.checks import check_checkpoint, check_new_folder, pinned
from fastblt.commands.options import (
    CheckpointArgument,
    DocumentMasksOption,
    Dtype,
    PatcherOption,
    RevisionOption,
    one_of,
)
from fastblt.commands.output import megabytes, progress, stderr, stdout
from fastblt.models.formats.registry import WRITABLE, writable_layout


def command(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    to: Annotated[str, typer.Option(callback=one_of(*WRITABLE), help=f"Layout to write: {' or '.join(WRITABLE)}.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights  [default: unchanged]")] = None,
    patcher: PatcherOption = None,
    revision: RevisionOption = None,
    document_masks: DocumentMasksOption = None,
) -> None:
    """Write a checkpoint in another layout.

    Converting back restores every bit, unless --dtype rounds.
    """
    target = writable_layout(to)
    checkpoint = pinned(checkpoint, revision)
    check_checkpoint(checkpoint)
    check_checkpoint(patcher)
    check_new_folder(out)
    import torch

    from fastblt.models.formats.convert import convert

    types = {Dtype.FP32: torch.float32, Dtype.FP16: torch.float16, Dtype.BF16: torch.bfloat16}
    console = stderr()
    source = read_checkpoint(console, checkpoint, patcher=patcher, document_masks=document_masks)
    with progress("converting") as on_progress:
        convert(source, out, to, None if dtype is None else types[dtype], on_progress)
    for line in target.differences(source.config):
        console.print(f"note: {line}", soft_wrap=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    stdout().print(f"{out}: {target.description}, {megabytes(size)} MB", soft_wrap=True)
