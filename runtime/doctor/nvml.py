"""Asks NVIDIA's management library (NVML) about driver and GPUs, where nvidia-ml-py (module ``pynvml``) is installed.

NVML needs neither CUDA nor cuda-python, and it lists every GPU of the machine: also those that this process may not
use, and those of a driver that is too old for the installed CUDA.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Board:
    """Describes one GPU as the driver reports it; None: the driver does not report it."""

    name: str
    sm: int | None = None
    """Compute capability, e.g. 89."""
    memory_bytes: int | None = None
    free_bytes: int | None = None
    power_limit_watts: float | None = None
    max_clock_mhz: int | None = None
    """Highest clock of the multiprocessors."""


def read_nvml() -> tuple[str | None, tuple[Board, ...]]:
    """Return the driver's version, e.g. ``580.95.05``, and the GPUs; (None, ()) where NVML cannot be asked.

    Whatever fails is left out; nothing is raised or printed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return None, ()
    try:
        version = _optional(lambda: _text(nvml.nvmlSystemGetDriverVersion()))
        count = _optional(lambda: int(nvml.nvmlDeviceGetCount())) or 0
        found = [_optional(partial(_board, nvml, index)) for index in range(count)]
        return version, tuple(board for board in found if board is not None)
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _board(nvml: Any, index: int) -> Board:
    """Ask for one GPU; only its name has to be known."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = _optional(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    memory = _optional(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return Board(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        sm=None if capability is None else 10 * int(capability[0]) + int(capability[1]),
        memory_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        # NVML counts in milliwatts.
        power_limit_watts=_optional(lambda: int(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000),
        max_clock_mhz=_optional(lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))),
    )


def _optional(ask: Callable[[], T]) -> T | None:
    """Return the answer to a question; None where the GPU or the driver does not support it."""
    try:
        return ask()
    except Exception:
        return None


def _text(value: Any) -> str:
    """Return a string of NVML, which old versions of the module return as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
