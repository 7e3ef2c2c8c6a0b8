"""``fastblt convert``: write a checkpoint in another layout."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from fastblt.models.formats import transformers
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.formats.convert import convert
from fastblt.models.formats.open import DESCRIPTIONS, open_checkpoint

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run(
    checkpoint: str, out: Path, to: str, *, dtype: str | None, patcher: str | None, document_masks: bool | None
) -> None:
    """Convert, say what was found and written, and where the other software computes something else.

    Raises:
        ValueError: the checkpoint cannot be used, or the target layout has no such model.
        OSError: the folder cannot be written.
    """
    progress = Console(stderr=True, highlight=False)
    with progress.status("reading the checkpoint") as status:
        source = open_checkpoint(checkpoint, patcher=patcher, document_masks=document_masks)
        progress.print(f"{checkpoint}: found {DESCRIPTIONS[source.layout]}", soft_wrap=True)
        convert(source, out, to, _TYPES[dtype] if dtype else None, lambda name: status.update(f"writing {name}"))
    for line in _differences(source) if to == transformers.LAYOUT else ():
        progress.print(f"note: {line}", soft_wrap=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    Console(highlight=False).print(f"{out}: {DESCRIPTIONS[to]}, {size / 1e6:.2f} MB", soft_wrap=True)


def _differences(source: Checkpoint) -> list[str]:
    """Where transformers computes something else than this project does with the same checkpoint."""
    found = []
    if source.config.document_masks:
        found.append("transformers masks no documents: it differs after an EOS inside the text")
    rule = source.config.patching
    if rule.mode == "entropy" and rule.max_patch_length is not None:
        found.append("transformers' max_patch_length reads the wrong latent at the last byte of some prefixes")
    if rule.mode != "entropy" and rule.max_patch_length != 1:
        found.append(f"transformers has no {rule.mode} patches: it makes every byte one, unless given patch_lengths")
    return found
