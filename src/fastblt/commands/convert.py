"""``fastblt convert``: write a checkpoint in another layout."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from fastblt.models.formats.convert import convert
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.registry import writable_layout

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run(
    checkpoint: str, out: Path, to: str, *, dtype: str | None, patcher: str | None, document_masks: bool | None
) -> None:
    """Convert, say what was found and written, and where the other software computes something else.

    Raises:
        ValueError: the checkpoint cannot be used, or the target layout has no such model.
        OSError: the folder cannot be written.
    """
    target = writable_layout(to)
    progress = Console(stderr=True, highlight=False)
    with progress.status("reading the checkpoint") as status:
        source = open_checkpoint(checkpoint, patcher=patcher, document_masks=document_masks)
        progress.print(f"{checkpoint}: found {source.layout.description}", soft_wrap=True)
        convert(source, out, to, _TYPES[dtype] if dtype else None, lambda name: status.update(f"writing {name}"))
    for line in target.differences(source.config):
        progress.print(f"note: {line}", soft_wrap=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    Console(highlight=False).print(f"{out}: {target.description}, {size / 1e6:.2f} MB", soft_wrap=True)
