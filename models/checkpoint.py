"""Checkpoint folders: ``config.json`` and ``model.safetensors`` (patcher included)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names file or tensor, what was found and what is expected."""


def save_checkpoint(folder: Path, model: Blt, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint folder, all of it or nothing.

    Args:
        folder: created, or replaced.
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


def expected_shapes(config: BltConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint with this configuration."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Blt(config).state_dict().items()}


def read_config(folder: Path) -> BltConfig:
    """The configuration of a checkpoint folder.

    Raises:
        CheckpointError: the folder does not exist.
        ConfigError: config.json is missing or invalid.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder, expected a checkpoint with {CONFIG_FILE} and {WEIGHTS_FILE}")
    return BltConfig.load(folder / CONFIG_FILE)


def check_weights(path: Path, config: BltConfig) -> None:
    """Compare names, shapes and types of a weight file with a configuration, without reading tensors.

    Raises:
        CheckpointError: the file is missing or damaged, or a tensor is missing, unknown or misshapen.
    """
    expected = expected_shapes(config)
    try:
        with safe_open(path, framework="np") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in found.items()}
            types = {name: piece.get_dtype() for name, piece in found.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected the checkpoint's weights") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    problems = [f"missing {n} {list(expected[n])}" for n in expected if n not in shapes]
    problems += [f"unknown {n} {list(shapes[n])}" for n in shapes if n not in expected]
    problems += [
        f"{n}: found shape {list(shapes[n])}, expected {list(expected[n])}"
        for n in expected
        if n in shapes and shapes[n] != expected[n]
    ]
    problems += [f"{n}: found type {t}, expected F32, F16 or BF16" for n, t in types.items() if t not in _TYPES]
    if problems:
        raise CheckpointError(f"{path}: tensors do not fit {CONFIG_FILE}: " + "; ".join(problems[:20]))


_TYPES = ("F32", "F16", "BF16")


def load_checkpoint(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Blt:
    """The eager model of a checkpoint folder, in evaluation mode.

    Args:
        folder: written by `save_checkpoint`.
        device: where the parameters go.
        dtype: parameter type; the patcher is fp32 whatever this says.

    Raises:
        CheckpointError: files are missing or damaged, tensors do not fit, or weights are not finite.
        ConfigError: config.json is invalid.
    """
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    check_weights(path, config)
    with torch.device("meta"):
        model = Blt(config)
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            wanted = torch.float32 if name.startswith("patcher.") else dtype
            tensor = file.get_tensor(name).to(device, wanted)
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path}: {name}: found NaN or infinite values, expected finite weights")
            tensors[name] = tensor
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)
