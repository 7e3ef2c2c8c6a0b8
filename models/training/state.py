"""Saves and restores the state of a run in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from fastblt.models import limits
from fastblt.models.atomic_file import write_file
from fastblt.models.config import build_dataclass, expect, expect_integer, expect_number
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.stores import open_file
from fastblt.models.shown import shown
from fastblt.models.training.shared_tensors import like, whole

PHASES = ("patcher", "model", "done")


@dataclass
class Progress:
    """Records how far a run has come; randomness is a function of (seed, phase, step), so nothing else is needed."""

    phase: str = "patcher"
    step: int = 0
    seconds: float = 0.0
    """Training seconds of the phase."""
    total_seconds: float = 0.0
    """Training seconds of the run, all phases."""
    tokens: int = 0
    """Bytes seen in the phase."""
    threshold: float = 0.0
    """Patching threshold in nats, once the patcher is trained."""


def save_state(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress, *, write: bool = True
) -> None:
    """Write parameters, optimizer state and progress; the previous file stays until the new one is complete.

    Processes that share tensors all call this, and one of them may ``write``.
    """
    tensors = {f"model.{name}": whole(p.detach()).contiguous() for name, p in model.state_dict().items()}
    tensors |= optimizer_tensors(optimizers, model)
    if write:
        write_file(path, save(tensors, metadata={"progress": json.dumps(asdict(progress))}))


def optimizer_tensors(optimizers: list[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Return momenta and step counts by parameter name, as `restore_optimizers` takes them."""
    return {
        f"optimizer.{name}.{key}": whole(value.detach()).contiguous()
        for name, p in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_state(path: Path, model: nn.Module) -> tuple[Progress, dict[str, Tensor]]:
    """Restore parameters and return progress and optimizer tensors (for `restore_optimizers`).

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    try:
        with open_file(path) as file:
            progress = _progress(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        model.load_state_dict(weights)
        optimizers = {n: t for n, t in tensors.items() if n.startswith("optimizer.")}
        _check_optimizers(model, optimizers)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not the state of this training run ({error})") from error
    return progress, optimizers


def _progress(metadata: dict[str, str]) -> Progress:
    found = build_dataclass(Progress, json.loads(metadata["progress"]), "progress.")
    assert isinstance(found, Progress)
    expect(found.phase in PHASES, "progress.phase", found.phase, f"one of {', '.join(PHASES)}")
    for name in ("step", "tokens"):
        expect_integer(f"progress.{name}", getattr(found, name), limits.STEPS, 0)
    for name in ("seconds", "total_seconds", "threshold"):
        expect_number(f"progress.{name}", getattr(found, name), limits.SECONDS)
    return found


def _check_optimizers(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless every momentum has the shape of its parameter; step counts are numbers."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for full, tensor in tensors.items():
        name, _, _ = full.removeprefix("optimizer.").rpartition(".")
        if name not in shapes or tensor.shape not in (shapes[name], ()):
            raise ValueError(f"found {shown(full)} {list(tensor.shape)}, expected the shape of a parameter")


def restore_optimizers(optimizers: list[torch.optim.Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved momenta back into the optimizers."""
    for name, p in model.named_parameters():
        for optimizer in optimizers:
            if not any(p is q for group in optimizer.param_groups for q in group["params"]):
                continue
            prefix = f"optimizer.{name}."
            for key, value in tensors.items():
                if key.startswith(prefix):
                    where = value.device if key.endswith(".step") else p.device
                    optimizer.state[p][key.removeprefix(prefix)] = like(value.to(where), p)
