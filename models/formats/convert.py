"""Writing a checkpoint in another layout, tensor by tensor, without holding it in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.formats import transformers
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.open import CONFIG_FILE, OWN, pieces_of
from fastblt.models.formats.safetensors_writer import Table, write_tables
from fastblt.models.formats.stores import DTYPE_NAMES, DTYPES

#: Layouts that can be written.
TARGETS = (transformers.LAYOUT, OWN)
WEIGHTS_FILE = "model.safetensors"


def convert(
    source: Checkpoint,
    folder: Path,
    target: str,
    dtype: torch.dtype | None = None,
    report: Callable[[str], None] | None = None,
) -> None:
    """Write a checkpoint folder of another layout, all of it or nothing.

    Args:
        source: an open checkpoint.
        folder: created; it must not exist, or be empty: a checkpoint may be all that somebody has.
        target: one of `TARGETS`.
        dtype: of the weights; None: each tensor of ours keeps its type (fp32 where its stored parts differ in theirs),
            and converting back restores every bit.
        report: told which tensor is being written.

    Raises:
        CheckpointError: the target has no such model, a weight is not finite or beyond the range of ``dtype``, or
            ``folder`` is not empty.
        OSError: it cannot be written.
    """
    if target not in TARGETS:
        raise CheckpointError(f"to: found {target!r}, expected one of {', '.join(TARGETS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: found something there, expected a new name or an empty folder")
    kinds = {name: dtype or DTYPES[source.dtype(name)] for name in source.pieces}
    text = _config_text(source, target, kinds)
    say = report or (lambda name: None)
    tables = {}
    for name, pieces in pieces_of(target, source.config).items():
        rows, *width = source.shape(name)
        each = rows // len(pieces)
        for index, piece in enumerate(pieces):
            chunks = partial(_bytes, source, name, kinds[name], index * each, each, say)
            tables[piece] = Table(DTYPE_NAMES[kinds[name]], kinds[name].itemsize, [each, *width], chunks)
    with replacing_folder(folder) as new:
        (new / CONFIG_FILE).write_text(text, encoding="utf-8")
        write_tables(new / WEIGHTS_FILE, tables)


def _config_text(source: Checkpoint, target: str, kinds: dict[str, torch.dtype]) -> str:
    if target == transformers.LAYOUT:
        most = max(set(kinds.values()), key=list(kinds.values()).count)
        return transformers.write_config(source.config, str(most).removeprefix("torch."))
    return source.config.to_json()


def _bytes(
    source: Checkpoint, name: str, dtype: torch.dtype, first: int, rows: int, on_progress: Callable[[str], None]
) -> Iterator[np.ndarray]:
    on_progress(name)
    for chunk in source.chunks(name, dtype, first, first + rows):
        yield chunk.contiguous().view(torch.uint8).numpy()
