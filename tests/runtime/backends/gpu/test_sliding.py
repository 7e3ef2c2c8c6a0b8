from __future__ import annotations

import ctypes

import hypothesis.strategies as st
import numpy as np
import pytest
from fakes.cuda import FakeCuda
from hypothesis import given
from properties import examples

from fastblt.runtime.backends.gpu.cuda import Cuda, Stream
from fastblt.runtime.backends.gpu.sliding import RewindError, SlidingBuffer
from fastblt.runtime.backends.protocol import CapacityError

SLOTS, KEEP, LANES, WIDTH = 64, 16, 3, 8


class Model:
    """Holds a buffer of int64 rows, and what every position of the sequence should contain."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.stream = Stream(Cuda(self.cuda))
        self.buffer = SlidingBuffer(self.stream, LANES, SLOTS, WIDTH, KEEP, slides=True)
        self.content: dict[int, int] = {}
        self.stamp = 0

    def slot(self, lane: int, position: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.buffer.address(lane, position - self.buffer.base))

    def write(self, needed: int, position: int, rows: int) -> None:
        """Make room as a call does, look at what is needed, and write the rows."""
        slot = self.buffer.make_room(needed, position, rows)
        self.stream.synchronize()
        assert slot == position - self.buffer.base
        assert 0 <= slot <= SLOTS - rows
        for seen in range(needed, position):
            for lane in range(LANES):
                assert self.slot(lane, seen).value == 10 * self.content[seen] + lane
        for row in range(position, position + rows):
            self.stamp += 1
            self.content[row] = self.stamp
            for lane in range(LANES):
                self.slot(lane, row).value = 10 * self.stamp + lane


@examples(200)
@given(st.lists(st.tuples(st.integers(1, 16), st.integers(0, KEEP)), min_size=1, max_size=80), st.integers(1, 24))
def test_rows_that_are_needed_are_there_after_any_calls_and_short_rewinds(
    steps: list[tuple[int, int]], window: int
) -> None:
    model, length, furthest = Model(), 0, 0
    for rows, back in steps:
        # Rewinds add up: rows are kept behind the newest one that was ever written.
        position = max(0, length - back, furthest - KEEP)
        model.write(max(0, position - window + 1), position, rows)
        length = position + rows
        furthest = max(furthest, length)


def test_rewind_further_than_what_is_kept_is_an_error() -> None:
    model = Model()
    for position in range(0, 320, 16):
        model.write(max(0, position - 8), position, 16)
    assert model.buffer.base > 100
    with pytest.raises(RewindError, match=r"rewind to position 50, expected at least \d+"):
        model.buffer.make_room(50, 60, 4)


def test_sequence_may_begin_again() -> None:
    model = Model()
    for position in range(0, 320, 16):
        model.write(max(0, position - 8), position, 16)
    model.content.clear()
    model.write(0, 0, 16)
    assert model.buffer.base == 0


def test_more_rows_than_there_are_slots_are_an_error() -> None:
    model = Model()
    model.write(0, 0, 40)
    with pytest.raises(CapacityError, match=r"found 70 rows to hold, expected at most 64"):
        model.buffer.make_room(0, 40, 30)


def test_nothing_moves_while_there_is_room() -> None:
    model = Model()
    model.write(0, 0, 32)
    queued = len(model.cuda.streams[model.stream.handle].queue)
    model.buffer.make_room(20, 32, 32)
    assert (model.buffer.base, len(model.cuda.streams[model.stream.handle].queue)) == (0, queued)


def test_more_than_the_usual_rows_are_used_only_while_they_are_needed() -> None:
    model = Model()
    model.buffer = SlidingBuffer(model.stream, LANES, SLOTS, WIDTH, 4, slides=True, usual=24)
    for position in range(0, 56, 4):
        model.write(0, position, 4)
    assert model.buffer.base == 0
    model.write(50, 56, 4)
    assert model.buffer.base == 46
    for position in range(60, 200, 4):
        model.write(position - 8, position, 4)
        assert position + 4 - model.buffer.base <= 24


def test_memory_is_zero_at_first() -> None:
    model = Model()
    lanes = [[model.slot(lane, slot).value for slot in range(SLOTS)] for lane in range(LANES)]
    assert not np.array(lanes).any()
