"""Compares what a model and its sequences will need with the memory of the machine, before anything is allocated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from fastblt.runtime.backends.protocol import CapacityError

#: Most sequences at once unless the user asks for a number; beyond it, threads would only wait for each other.
MOST_SEQUENCES = 64


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
    needed = (
        f"{_gigabytes(weights + buffers(max_bytes))} of memory ({_gigabytes(weights)} of them shared by all sequences)"
    )
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


def sequences_that_fit(
    weights: int,
    buffers: Callable[[int], int],
    max_bytes: int,
    wanted: int | None,
    available: int | None,
    where: str,
) -> int:
    """Return how many sequences a model may have at once.

    Args:
        weights: their size, in bytes.
        buffers: returns the bytes of caches and buffers of one sequence, for a text of this many bytes.
        max_bytes: longest prompt plus new bytes.
        wanted: number that the user asks for; None: as many as half of the memory that weights leave has room for, up
            to `MOST_SEQUENCES`.
        available: bytes of memory; None: unknown, and whatever is needed fits.
        where: the memory is, for the message: "this machine".

    Raises:
        CapacityError: that many do not fit, or not even one.
    """
    check_fits(weights, buffers, max_bytes, available, where)
    if wanted is None:
        if available is None:
            return MOST_SEQUENCES
        return max(1, min(MOST_SEQUENCES, (available - weights) // 2 // buffers(max_bytes)))
    needed = weights + wanted * buffers(max_bytes)
    if available is not None and needed > available:
        raise CapacityError(
            f"sequences: found {wanted} for max_bytes={max_bytes}, which take {_gigabytes(needed)} of memory "
            f"({_gigabytes(weights)} of them shared by all sequences), expected at most "
            f"{(available - weights) // buffers(max_bytes)} with the {_gigabytes(available)} of {where}"
        )
    return wanted


def check_batch_fits(
    taken: int, others: int, batch: Callable[[int], int], size: int, available: int | None, where: str
) -> None:
    """Refuse a batch that the memory cannot hold.

    Args:
        taken: bytes of weights, and of as many sequences as there may be.
        others: bytes of the batches that are open.
        batch: returns the bytes of a batch for this many sequences.
        size: of the batch.
        available: bytes of memory; None: unknown, and whatever is needed fits.
        where: the memory is, for the message: "this machine".

    Raises:
        CapacityError: it does not fit.
    """
    if available is None or batch(size) <= available - taken - others:
        return
    room = available - taken - others
    largest = bisect_right(range(1, size), room, key=batch)
    raise CapacityError(
        f"batch: found {size} sequences, which take {_gigabytes(batch(size))} of memory beside the "
        f"{_gigabytes(taken + others)} of weights, sequences and other batches, expected at most {largest} with the "
        f"{_gigabytes(available)} of {where}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
