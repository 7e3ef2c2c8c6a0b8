"""Computes how many sequences a call of a batch may take, and the device memory that the batch takes for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.gpu.device_rows import MOST_ELEMENTS
from fastblt.runtime.backends.gpu.memory import call_buffers
from fastblt.runtime.backends.gpu.places import exchange_bytes
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.bundle.manifest import BundleError

if TYPE_CHECKING:
    from fastblt.runtime.backends.gpu.backend import DeviceBackend

#: Most sequences in one call.
MOST_TOGETHER = 16


def sequences_of_calls(backend: DeviceBackend, size: int) -> int:
    """Return the most sequences of a call in a batch for ``size`` sequences: a power of two, so that few ranges occur.

    Raises:
        BundleError: the graphs, or the engines, take one sequence at a time, or calls of several have fewer rows than
            the row floor.
        CapacityError: the texts are so long that the latents of two cannot be read by one call.
    """
    wanted = min(size, backend.sequences, MOST_TOGETHER)
    together = 1 << (wanted - 1).bit_length()
    if together == 1:
        return 1
    for executor in backend.executors.values():
        if executor.batch_problem(2) is not None:
            raise BundleError(executor.batch_problem(wanted))
    rows = _most_rows(backend)
    if backend.row_floor > rows:
        raise BundleError(
            f"row floor: found {backend.row_floor}, expected at most {rows}, the rows of each sequence in a call of "
            "several (--row-floor)"
        )
    latents = backend.slots[0].rows["latent_kv"]
    if 2 * latents.elements > MOST_ELEMENTS:
        raise CapacityError(
            f"max_bytes: found {backend.max_bytes}, where the latents of two sequences have {2 * latents.elements} "
            f"elements, expected at most {MOST_ELEMENTS}, which a call can count"
        )

    def fits(count: int) -> bool:
        taken = min(count, backend.sequences)
        return taken * latents.elements <= MOST_ELEMENTS and not any(
            executor.batch_problem(taken) for executor in backend.executors.values()
        )

    while not fits(together):
        together //= 2
    return together


def batch_bytes(backend: DeviceBackend, together: int) -> int:
    """Return the device memory that a batch takes, in bytes: that of calls, since the caches are those of the slots.

    Args:
        backend: of the sequences.
        together: most sequences of a call.
    """
    specs = {part: executor.spec for part, executor in backend.executors.items()}
    calls = call_buffers(backend.config, specs, min(together, backend.sequences), _most_rows(backend))
    return sum(calls.values()) + exchange_bytes(backend.memory)


def _most_rows(backend: DeviceBackend) -> int:
    """Return the most rows of each sequence that calls of all parts take."""
    return min(SHARED_ROWS, *(executor.batch_rows for executor in backend.executors.values()))
