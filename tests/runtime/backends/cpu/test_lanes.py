"""Lanes of a stack: they hold what a sequence has computed, whatever it does, and nothing of another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes.interrupts import Interrupts

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.cpu import lanes as lanes_module
from fastblt.runtime.backends.cpu.buffers import KvBuffers
from fastblt.runtime.backends.cpu.lane_classes import LaneClasses
from fastblt.runtime.backends.cpu.lanes import Lanes
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.backends.protocol import CapacityError

NAMES = ["key", "value"]
DIM, CAPACITY = 3, 400
SLOT_BYTES = len(NAMES) * DIM * 4


class Text:
    """Holds a sequence's own caches, and what they and its lane ought to hold: a number for each position."""

    numbers = 1.0

    def __init__(self, window: int | None) -> None:
        self.own = KvBuffers(NAMES, CAPACITY + SHARED_ROWS, DIM, np.dtype(np.float32), window)
        self.rows: list[float] = []

    def write(self, place: Callable[[str], Any], position: int, count: int) -> None:
        """Write new rows from a position on, which is 0 in what ``place`` returns."""
        new = [Text.numbers + index for index in range(count)]
        Text.numbers += count
        self.rows[position:] = new
        for name in NAMES:
            place(name)[:count] = np.array(new)[:, None]

    def check(self, place: Callable[[str], Any], first: int, end: int) -> None:
        """Compare rows with those that ought to be in what ``place`` returns, the first at 0."""
        for name in NAMES:
            np.testing.assert_array_equal(place(name)[: end - first, 0], self.rows[first:end])

    def check_own(self) -> None:
        self.check(lambda name: self.own.buffers[name].array, 0, len(self.rows))


def lanes_of(window: int | None, size: int = 3, exact: bool = False) -> Lanes:
    return Lanes(NAMES, DIM, np.dtype(np.float32), size, LaneClasses(window, CAPACITY, exact=exact))


def grow(lanes: Lanes, seat: int, text: Text, position: int, rows: int, room: int = 0) -> None:
    """Compute rows in a lane, and check what they see."""
    room = max(room, rows)
    lanes.place(seat, text.own, position, rows, room)
    of, base, classes = lanes.class_of[seat], lanes.base[seat], lanes.classes
    assert classes.fits(base, position)
    assert position + room - base <= classes.slots[of]
    assert lanes.end[seat] == position + rows
    buffers, first = lanes.buffers(of), first_visible(position, classes.window)
    text.check(lambda name: buffers[name].array[seat, first - base :], first, position)
    assert all(np.isfinite(buffer.array[seat]).all() for buffer in buffers.values())
    text.write(lambda name: buffers[name].array[seat, position - base :], position, rows)


def is_clear(lanes: Lanes, seat: int) -> bool:
    return not any(memory.array[seat].any() for of in lanes._buffers for memory in of.values())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("window", [None, 1, 24, 100])
def test_lanes_hold_what_has_been_computed(window: int | None, exact: bool) -> None:
    random, lanes = np.random.default_rng(7), lanes_of(window, exact=exact)
    texts: list[Text | None] = [None] * lanes.size
    for _ in range(1500):
        seat, what = int(random.integers(lanes.size)), random.random()
        text = texts[seat]
        if text is None:
            text = texts[seat] = Text(window)
        length = len(text.rows)
        if what < 0.8:
            position = length if random.random() < 0.8 else int(random.integers(max(0, length - 90), length + 1))
            if position > CAPACITY - 40:
                position = int(random.integers(0, length // 2))
            rows = int(random.choice([1, 1, 2, 7, 20]))
            grow(lanes, seat, text, position, rows, int(random.integers(1, SHARED_ROWS + 1)))
        elif what < 0.86:
            of = lanes.class_of[seat] + 1
            if 0 < of < len(lanes.classes.slots):
                lanes.join_class(seat, text.own, of)
        elif what < 0.92:
            lanes.leave(seat, text.own)
            text.check_own()
            assert is_clear(lanes, seat)
            position = max(0, length - int(random.integers(0, 3)))
            if position < CAPACITY - 40:
                own = text.own.buffers
                text.write(lambda name, own=own, at=position: own[name].array[at:], position, 2)  # type: ignore[misc]
        elif what < 0.96:
            to = (seat + 1) % lanes.size
            lanes.copy(seat, to)
            lanes.drop(seat)
            texts[to], texts[seat] = text, None
            assert is_clear(lanes, seat)
        else:
            lanes.drop(seat)
            texts[seat] = None
            assert is_clear(lanes, seat)
    for seat, text in enumerate(texts):
        if text is not None:
            lanes.leave(seat, text.own)
            text.check_own()
    assert {"join", "leave", "move"} <= set(lanes.copied)


def test_bytes_are_counted_when_rows_are_copied() -> None:
    lanes, text = lanes_of(None), Text(None)
    text.write(lambda name: text.own.buffers[name].array, 0, 50)
    grow(lanes, 0, text, 50, 4)
    assert dict(lanes.copied) == {"join": 50 * SLOT_BYTES}
    grow(lanes, 0, text, 54, 20)
    lanes.copy(0, 2)
    lanes.drop(0)
    lanes.leave(2, text.own)
    assert dict(lanes.copied) == {
        "join": 50 * SLOT_BYTES,
        "growth": 54 * SLOT_BYTES,
        "move": 74 * SLOT_BYTES,
        "leave": 24 * SLOT_BYTES,
    }


def test_window_slides_by_a_copy_of_what_is_seen() -> None:
    lanes, text = lanes_of(24), Text(24)
    for position in range(60):
        grow(lanes, 0, text, position, 1)
    assert not lanes.copied["slide"]
    grow(lanes, 0, text, 60, 8)
    base = lanes.base[0]
    assert base == 32
    assert dict(lanes.copied) == {"join": 0, "slide": (60 - base + base) * SLOT_BYTES}, "the window, and what goes home"


@pytest.mark.parametrize("what", ["copy", "leave", "drop", "load"])
def test_interrupt_leaves_each_seat_its_own(what: str) -> None:
    """Whatever a seat is left with, is dropped before another text has it; its owner loses nothing."""
    interrupts, after = Interrupts(lanes_module), 0
    while _is_interrupted(interrupts, after, what):
        after += 1
    assert after > 20


def _is_interrupted(interrupts: Interrupts, after: int, what: str) -> bool:
    """Return whether something was still to be done after so many instructions; check what is left behind."""
    lanes, text, other = lanes_of(24), Text(24), Text(24)
    grow(lanes, 1, text, 0, 20)
    run: dict[str, Callable[[], None]] = {
        "copy": lambda: lanes.copy(1, 0),
        "leave": lambda: lanes.leave(1, text.own),
        "drop": lambda: lanes.drop(1),
        "load": lambda: lanes.place(0, text.own, 0, 1, 1),
    }
    interrupted = interrupts.interrupt(run[what], after)
    seat = 1 if what == "drop" else 0
    lanes.drop(seat)
    grow(lanes, seat, other, 0, 3)
    assert not lanes.buffers(0)["key"].array[seat, 3:].any()
    if seat == 0:
        grow(lanes, 1, text, 20, 2)
        lanes.leave(1, text.own)
        text.check_own()
    return interrupted


def test_without_memory_for_a_larger_lane_a_text_leaves_with_all_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, text = lanes_of(None), Text(None)
    grow(lanes, 0, text, 0, 20)
    grow(lanes, 0, text, 20, 20)

    def fail(*_: Any) -> None:
        raise CapacityError("lanes: found no memory")

    monkeypatch.setattr(lanes_module, "LaneMemory", fail)
    with pytest.raises(CapacityError):
        lanes.place(0, text.own, 40, 30, 30)
    lanes.leave(0, text.own)
    text.check_own()
