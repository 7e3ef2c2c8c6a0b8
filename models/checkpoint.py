"""Loads eager models from checkpoints of any layout, and saves them in this project's own layout.

A saved folder has ``config.json`` and ``model.safetensors``, patcher included. For other layouts see
`fastblt.models.formats`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.blt import Blt
from fastblt.models.formats.checkpoint import HASH_TABLE, Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.layout import CONFIG_FILE, WEIGHTS_FILE
from fastblt.models.formats.names import PATCHER_PREFIX
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.stores import DTYPES
from fastblt.models.machine_memory import check_memory


def save_checkpoint(folder: Path, model: Blt, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint folder atomically.

    Args:
        folder: created or replaced.
        model: its parameters are stored as ``dtype``.
        dtype: storage type.
    """
    tensors = {name: p.detach().to("cpu", dtype).contiguous() for name, p in model.state_dict().items()}
    with replacing_folder(folder) as new:
        model.config.save(new / CONFIG_FILE)
        try:
            save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"{folder / WEIGHTS_FILE}: cannot be written ({error})") from error


def load_checkpoint(path: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Blt:
    """Return the eager model of a checkpoint, in evaluation mode.

    Args:
        path: of any layout, see `open_checkpoint`.
        device: where the parameters go.
        dtype: parameter type; the patcher is always fp32, and a hash table that is stored in 16 bits keeps its
            type (blt-1b's would take 12 GB in fp32; on the CPU it is mapped from its file).

    Raises:
        CheckpointError: files are missing or damaged, tensors do not fit, weights are not finite, or memory cannot
            hold them.
        ConfigError: its configuration is invalid.
    """
    return load_model(open_checkpoint(path), device=device, dtype=dtype)


def load_model(checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Blt:
    """Return the eager model of an open checkpoint; see `load_checkpoint`."""
    with torch.device("meta"):
        model = Blt(checkpoint.config)
    types = dict.fromkeys(model.state_dict(), dtype)
    types |= {name: torch.float32 for name in types if name.startswith(PATCHER_PREFIX)}
    if HASH_TABLE in types and checkpoint.dtype(HASH_TABLE) != "F32":
        types[HASH_TABLE] = DTYPES[checkpoint.dtype(HASH_TABLE)]
    size = sum(checkpoint.allocated_bytes(name, wanted) for name, wanted in types.items())
    if device == "cpu":  # elsewhere one tensor at a time passes through main memory
        check_memory(size, checkpoint.path, "weights", CheckpointError)
    tensors = {name: checkpoint.read(name, wanted).to(device) for name, wanted in types.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)
