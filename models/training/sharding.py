"""Shares the weights, gradients and momenta of a whole model among processes (PyTorch's ``fully_shard``).

Each layer of the global transformer, which holds most weights, is put together for the moment in which it runs;
everything else is put together for a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fastblt.models.blt import Blt
from fastblt.models.training.processes import Processes

#: Loss of a step and its report, from the part of the run that is done and a source of randomness.
LossOf = Callable[[float, np.random.Generator], tuple[Tensor, dict[str, float]]]


class _Step(nn.Module):
    """Makes a step a call of a module, as ``fully_shard`` needs it."""

    def __init__(self, module: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.module, self.loss_of = module, loss_of

    def forward(self, done: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.loss_of(done, rng)


def shard(module: nn.Module, loss_of: LossOf, processes: Processes, device: torch.device) -> LossOf:
    """Share the parameters of a module that is trained; return its loss of a step, which puts them together.

    Args:
        module: to train; its parameters become `DTensor`s, with the same names.
        loss_of: computes the loss of this process's part of a step.
        processes: this process and the others.
        device: of the module.
    """
    mesh = init_device_mesh(device.type, (processes.count,))
    if isinstance(module, Blt):
        for layer in module.global_transformer.layers:
            fully_shard(layer, mesh=mesh)
    step = _Step(module, loss_of)
    fully_shard(step, mesh=mesh)

    def loss(done: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        found, report = step(done, PartGenerator(rng, processes))
        figures = processes.mean(torch.tensor(list(report.values()), device=device)).tolist()
        return found, dict(zip(report, figures, strict=True))

    return loss


class PartGenerator(np.random.Generator):
    """Draws for the whole batch and returns what belongs to this process: its rows of the first axis.

    A step is then the same step, however many processes share it.
    """

    def __init__(self, rng: np.random.Generator, processes: Processes) -> None:
        super().__init__(rng.bit_generator)
        self._processes = processes

    def integers(self, low: Any, high: Any = None, size: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Draw integers like `numpy.random.Generator.integers`."""
        return self._part(super().integers(low, high, self._whole(size), **options))

    def random(self, size: Any, **options: Any) -> Any:  # type: ignore[override]
        """Draw numbers like `numpy.random.Generator.random`."""
        return self._part(super().random(self._whole(size), **options))

    def permuted(self, x: Any, **options: Any) -> Any:
        """Shuffle each row like `numpy.random.Generator.permuted`; all rows are alike."""
        return self._part(super().permuted(np.concatenate([x] * self._processes.count), **options))

    def _whole(self, size: int | tuple[int, ...]) -> tuple[int, ...]:
        first, *others = (size,) if isinstance(size, int) else size
        return (first * self._processes.count, *others)

    def _part(self, drawn: Any) -> Any:
        rows = len(drawn) // self._processes.count
        return drawn[self._processes.rank * rows : (self._processes.rank + 1) * rows]
