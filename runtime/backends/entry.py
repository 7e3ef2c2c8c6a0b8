"""Describes a backend to everything that offers backends to a user: help, errors, defaults and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastblt.models import limits
from fastblt.models.shown import shown
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.progress import OnProgress, no_progress

if TYPE_CHECKING:
    from fastblt.runtime.backends.protocol import Backend

#: Capacity, in bytes of text, that costs nothing on a CPU: its memory is only reserved until a text reaches it.
ROOMY = 4096
#: Values of `LoadRequest.row_floor`. With the last one, all calls have the same number of rows.
ROW_FLOORS = (1, 2, 4, 8, 16, 32, 64)


class BackendError(ValueError):
    """Reports a backend that is unknown, cannot be loaded, or does not run where it should."""


class ProviderError(ValueError):
    """Reports a provider that is unknown, that a backend does not take, or that does not work on this machine."""


@dataclass(frozen=True)
class LoadRequest:
    """Holds what to load and for what; every backend reads the fields that concern it.

    Raises:
        ValueError: ``max_bytes``, ``threads``, ``sequences`` or ``row_floor`` is out of range.
    """

    folder: Path
    """A bundle; a checkpoint, for backends that read them (`BackendEntry.reads_checkpoints`)."""
    provider: str = "auto"
    """One of `BackendEntry.providers`."""
    max_bytes: int = ROOMY
    """Longest prompt plus new bytes, in 1..`limits.TEXT_BYTES`."""
    threads: int | None = None
    """Threads of one operator on the CPU; None: as many as suit the model."""
    sequences: int | None = None
    """Most sequences at once, up to `limits.SEQUENCES`; None: on a CPU as memory allows, on a GPU one."""
    row_floor: int = 1
    """Fewest rows of a call on a GPU, one of `ROW_FLOORS`; shorter calls are padded."""
    warm_up: bool = False
    """Whether everything that generations can need is run on a GPU before the backend is returned."""
    on_progress: OnProgress = no_progress
    """Called during that."""

    def __post_init__(self) -> None:
        check_capacity(self.max_bytes)
        if self.row_floor not in ROW_FLOORS:
            known = ", ".join(map(str, ROW_FLOORS))
            raise ValueError(f"row_floor: found {shown(self.row_floor)}, expected one of {known}")
        check_sequences(self.sequences)
        if self.threads is not None:
            _check_integer("threads", self.threads, min(limits.THREADS, limits.THREADS_A_CORE * usable_cores()))


def check_capacity(max_bytes: object) -> None:
    """Raise ValueError where ``max_bytes`` is no length of a text."""
    _check_integer("max_bytes", max_bytes, limits.TEXT_BYTES)


def check_sequences(sequences: object) -> None:
    """Raise ValueError where ``sequences`` is no number of texts at once; None is one."""
    if sequences is not None:
        _check_integer("sequences", sequences, limits.SEQUENCES)


def _check_integer(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name}: found {shown(value)}, expected a positive integer up to {most}")


def roomy_capacity(needed: int) -> int:
    """Return a capacity with room for more text, for backends whose unused memory costs nothing."""
    return max(ROOMY, needed)


def exact_capacity(needed: int) -> int:
    """Return the capacity that is needed, for backends that pay for what they reserve."""
    return needed


@dataclass(frozen=True)
class BackendEntry:
    """Holds what is known of a backend before it is loaded; see `fastblt.runtime.backends.registry`."""

    name: str
    """What a user writes: ``onnxruntime``."""
    summary: str
    """What runs the model, in a few plain words and without a full stop."""
    load: Callable[[LoadRequest], Backend]
    """Loads a bundle; imports what it needs only then. Raises `ValueError` where the bundle cannot be used."""
    load_reference: Callable[[LoadRequest], Backend] | None = None
    """Loads what other backends are compared with, where that is more exact than ``load``: eager PyTorch in fp32,
    whatever the bundle's dtype. None: ``load`` does."""
    devices: tuple[str, ...] = ("cpu",)
    """Values that `Backend.device` may have: ``cpu``, ``cuda``."""
    providers: tuple[str, ...] = ("auto",)
    """Values of ``--provider`` that it accepts."""
    default_capacity: Callable[[int], int] = roomy_capacity
    """Returns the capacity to load for a text of this many bytes, where the user asks for none."""
    reads_checkpoints: bool = False
    """Whether it loads checkpoints, besides bundles."""
