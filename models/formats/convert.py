"""Writes a checkpoint in another layout, tensor by tensor, without holding it in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.layout import CONFIG_FILE, WEIGHTS_FILE
from fastblt.models.formats.registry import writable_layout
from fastblt.models.formats.safetensors_writer import Table, write_tables
from fastblt.models.formats.stores import DTYPE_NAMES, DTYPES


def convert(
    source: Checkpoint,
    folder: Path,
    target: str,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> None:
    """Write a checkpoint folder of another layout atomically.

    Args:
        source: an open checkpoint.
        folder: created; it must not exist or must be empty: a checkpoint may be the only copy that somebody has.
        target: name of a layout in `fastblt.models.formats.registry.WRITABLE`.
        dtype: of the weights; None: each of our tensors keeps its type (fp32 if the types of its stored parts differ),
            and converting back restores every bit.
        on_progress: called before each tensor and at the end with the number of tensors written, that of all tensors,
            and the tensor's name (ours).

    Raises:
        CheckpointError: there is no such layout, it cannot express the model, a weight is not finite or beyond the
            range of ``dtype``, or ``folder`` is not empty.
        OSError: the folder cannot be written.
    """
    layout = writable_layout(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: found something there, expected a new name or an empty folder")
    pieces_of = layout.pieces(source.config)
    kinds = {name: dtype or DTYPES[source.dtype(name)] for name in pieces_of}
    main = max(set(kinds.values()), key=list(kinds.values()).count)
    text = layout.config_text(source.config, str(main).removeprefix("torch."))
    tables: dict[str, Table] = {}
    total = sum(map(len, pieces_of.values()))
    for name, pieces in pieces_of.items():
        rows, *width = source.shape(name)
        each = rows // len(pieces)
        for index, piece in enumerate(pieces):
            begin = partial(on_progress, len(tables), total, name)
            chunks = partial(_bytes, source, name, kinds[name], index * each, each, begin)
            tables[piece] = Table(DTYPE_NAMES[kinds[name]], kinds[name].itemsize, [each, *width], chunks)
    with replacing_folder(folder) as new:
        (new / CONFIG_FILE).write_text(text, encoding="utf-8")
        write_tables(new / WEIGHTS_FILE, tables)
    on_progress(total, total, "")


def _bytes(
    source: Checkpoint, name: str, dtype: torch.dtype, first: int, rows: int, begin: Callable[[], None]
) -> Iterator[np.ndarray]:
    """Yield the bytes of some rows of a tensor, converted, as uint8 arrays; call ``begin`` first."""
    begin()
    for chunk in source.chunks(name, dtype, first, first + rows):
        yield chunk.contiguous().view(torch.uint8).numpy()
