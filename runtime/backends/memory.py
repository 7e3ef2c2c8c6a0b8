"""Compares what a model will need with the memory of the machine, before anything is allocated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from fastblt.runtime.backends.protocol import CapacityError


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
