"""Compares what a model will need with the memory of the machine, before anything is allocated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from fastblt.models.machine_memory import physical_memory
from fastblt.runtime.backends.protocol import CapacityError


def host_memory() -> int | None:
    """Return the bytes of main memory and swap; None where the system does not report them.

    Buffers are only reserved, and committed as a text grows, so what is free at the moment does not matter.
    """
    memory = physical_memory()
    return None if memory is None else memory + _swap()


def _swap() -> int:
    """Return the bytes of swap; 0 where the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def check_fits(weights: int, buffers: Callable[[int], int], max_bytes: int, available: int | None, where: str) -> None:
    """Refuse to load what the memory cannot hold.

    Args:
        weights: their size, in bytes.
        buffers: returns the bytes of caches and buffers for a text of this many bytes.
        max_bytes: longest prompt plus new bytes.
        available: bytes of memory; None: unknown, and whatever is needed fits.
        where: the memory is, for the message: "this machine".

    Raises:
        CapacityError: weights and buffers need more; the message has the largest ``max_bytes`` that fits.
    """
    if available is None or weights + buffers(max_bytes) <= available:
        return
    needed = f"{_gigabytes(weights + buffers(max_bytes))} of memory ({_gigabytes(weights)} of them for weights)"
    largest = bisect_right(range(1, max_bytes), available - weights, key=buffers)
    if largest == 0:
        raise CapacityError(
            f"memory: found {_gigabytes(available)} on {where}, expected {needed}: "
            "fastblt quantize makes smaller models"
        )
    raise CapacityError(
        f"max_bytes: found {max_bytes}, which takes {needed}, "
        f"expected at most {largest} with the {_gigabytes(available)} of {where}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
