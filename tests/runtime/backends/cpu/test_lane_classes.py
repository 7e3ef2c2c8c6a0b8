"""Classes of lanes: each has room for what rows see and for what they write, wherever a sequence is."""

from __future__ import annotations

import pytest

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.cpu.buffers import VIEW_SLOTS
from fastblt.runtime.backends.cpu.lane_classes import LaneClasses
from fastblt.runtime.backends.live_rows import first_visible

CAPACITY = 1500


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("window", [None, 1, 24, 512, 545])
def test_every_position_has_a_class(window: int | None, exact: bool) -> None:
    classes = LaneClasses(window, CAPACITY, exact=exact)
    step = VIEW_SLOTS if exact else 8
    assert classes.slots == sorted(set(classes.slots))
    assert all(slots % VIEW_SLOTS == 0 for slots in classes.slots)
    for position in range(CAPACITY):
        base = classes.base(position)
        assert base % step == 0
        assert 0 <= first_visible(position, window) - base < step
        assert classes.fits(base, position)
        assert not classes.fits(base + step, position), "what the row sees would be missing"
        assert classes.fits(base - step, position) is not exact
        for room in (1, SHARED_ROWS):
            needed = position + room - base
            of = classes.least(needed)
            assert classes.slots[of] >= needed
            assert of == 0 or classes.slots[of - 1] < needed
