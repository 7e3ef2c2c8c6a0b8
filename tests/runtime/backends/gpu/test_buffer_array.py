"""Buffers of all slots: what they hold survives every move, and what nobody holds is zero."""

from __future__ import annotations

import ctypes

import hypothesis.strategies as st
from fakes.cuda import FakeCuda
from hypothesis import given
from properties import examples

from fastblt.runtime.backends.gpu.buffer_array import BufferArray
from fastblt.runtime.backends.gpu.cuda import Cuda, Stream
from fastblt.runtime.backends.gpu.sliding import SlidingBuffer

PLACES, LANES, ROWS, LEAST, WIDTH = 4, 2, 112, 16, 8


def cell(array: BufferArray, place: int, lane: int, row: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(array.address(place, lane, row))


@examples(100)
@given(st.lists(st.tuples(st.integers(0, PLACES - 1), st.integers(0, ROWS)), min_size=1, max_size=12))
def test_what_is_held_survives_every_move(steps: list[tuple[int, int]]) -> None:
    """Each step gives a slot another text, whose rows are as many as there are; the array fits itself to all."""
    stream = Stream(Cuda(FakeCuda()))
    array = BufferArray(stream, PLACES, LANES, ROWS, WIDTH, LEAST)
    buffers = [SlidingBuffer(stream, LANES, ROWS, WIDTH, 0, slides=False, array=array) for _ in range(PLACES)]
    for stamp, (place, rows) in enumerate(steps, 1):
        buffer = buffers[place]
        buffer.clear()
        buffer.make_room(0, 0, rows)
        buffer.end = rows
        stream.synchronize()
        for row in range(rows):
            for lane in range(LANES):
                cell(array, place, lane, row).value = 1000 * stamp + 10 * row + lane
        held = {place: [cell(array, place, 1, row).value for row in range(b.live)] for place, b in enumerate(buffers)}
        array.fit()
        stream.synchronize()
        assert array.stride == array.stride_for(max(b.live for b in buffers))
        for at, each in enumerate(buffers):
            found = [cell(array, at, 1, row).value for row in range(array.stride)]
            assert found[: each.live] == held[at]
            assert not any(found[each.live :])
