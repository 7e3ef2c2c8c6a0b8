"""Seats of a batch, and the latents that are kept by seat."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.cpu.latent_store import LATENTS, LatentStore
from fastblt.runtime.backends.cpu.seats import Seats


def seated(count: int, size: int) -> tuple[Seats, list[Any]]:
    """Return seats of which the first are taken, and who has them."""
    seats, sequences = Seats(size), [cast("Any", object()) for _ in range(count)]
    seats.use(sequences)
    for sequence in sequences:
        seats.take(seats.first_free(), sequence)
    return seats, sequences


def test_who_has_called_least_lately_has_to_leave() -> None:
    seats, (a, b, c) = seated(3, 4)
    assert seats.idle() is None
    d = cast("Any", object())
    assert seats.use([d, a, c]) == [-1, 0, 2]
    seats.take(seats.first_free(), d)
    assert seats.idle() == 1
    assert seats.use([b]) == [1]
    assert seats.idle() == 0, "of those that called together, the first"
    assert (seats.of(d), seats.of(cast("Any", object()))) == (3, -1)


def test_holes_are_filled_by_the_last() -> None:
    seats, (a, b, c, d) = seated(4, 5)
    assert seats.hole() is None
    seats.free(3)
    assert seats.hole() is None, "nobody is behind it"
    seats.free(0)
    assert seats.hole() == (2, 0)
    seats.use([b])
    seats.move(2, 0)
    assert seats.sequences == [c, b, None, None, None]
    assert [seats.of(each) for each in (a, b, c, d)] == [-1, 1, 0, -1]
    assert seats.hole() is None
    for _ in range(3):
        seats.take(seats.first_free(), cast("Any", object()))
    assert seats.idle() == 0, "it has not called since it moved"


def test_latents_are_copied_once_and_again_after_they_have_changed() -> None:
    own = Buffer(200, (2,), np.dtype(np.float32))
    own.array[:] = np.arange(200)[:, None]
    store = LatentStore((2,), np.dtype(np.float32), 3)

    def read(first: int, last: int, seat: int = 1) -> list[float]:
        added = store.index(seat, own, first, last)
        found: list[float] = store.memory.array[first + added : last + 1 + added, 0].tolist()
        return found

    assert read(10, 12) == [10, 11, 12]
    own.array[:] += 1000
    assert read(11, 12) == [11, 12], "it is not copied again"
    assert read(12, 13) == [1012, 1013], "one of them was not there"
    own.array[:] += 1000
    store.forget(1, 13)
    assert read(12, 12) == [1012]
    assert read(12, 13) == [2012, 2013]
    store.forget(1, 5)
    assert read(12, 13) == [2012, 2013]
    assert read(50, 50 + LATENTS - 1) == list(range(2050, 2050 + LATENTS))
    assert read(0, LATENTS - 1, seat=2)[-1] == 2000 + LATENTS - 1
    assert read(50, 51) == [2050, 2051], "another seat's are beside them"
    assert not store.memory.array[: 1 + LATENTS].any(), "nor those of a seat that has read none"


@pytest.mark.parametrize("first", [0, 3])
def test_forgotten_latents_are_read_anew(first: int) -> None:
    own, store = Buffer(8, (1,), np.dtype(np.float32)), LatentStore((1,), np.dtype(np.float32), 1)
    store.index(0, own, 2, 5)
    own.array[:] = 7
    store.forget(0, first)
    added = store.index(0, own, 3, 4)
    assert store.memory.array[3 + added : 5 + added, 0].tolist() == [7, 7]
