"""Joins the processes that ``torchrun`` starts: each computes its part of a step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Identifies this process among those of a training run; alone, every method does nothing."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Decide whether this process prints and writes files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Return what the first process found: clocks differ."""
        if self.count == 1:
            return flag
        found = torch.tensor(int(flag), device=device)
        dist.broadcast(found, 0)
        return bool(found)

    def same(self, value: float, device: torch.device) -> float:
        """Return the first process's number."""
        if self.count == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(found, 0)
        return float(found)

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Yield this process among those that ``torchrun`` started, and its device.

    Args:
        device: ``cpu``; or ``cuda``, of which each process has one by its number on its machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    here = torch.device(device)
    if device == "cuda":
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(here)
    if count == 1:
        yield Processes(), here
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), here
    finally:
        dist.destroy_process_group()
