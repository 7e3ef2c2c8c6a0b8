"""Memory of lanes: a cleared lane is zero, and its neighbors are as before."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest

from fastblt.runtime.backends.cpu import lane_memory
from fastblt.runtime.backends.cpu.lane_memory import LaneMemory
from fastblt.runtime.backends.protocol import CapacityError


@pytest.mark.parametrize("gives_back", [True, False])
@pytest.mark.parametrize(("slots", "dim"), [(64, 3), (64, 16), (64, 33), (192, 24), (256, 64)])
def test_one_lane_is_cleared(slots: int, dim: int, gives_back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes are smaller than a page, a page, several, and no multiple of one."""
    monkeypatch.setattr(lane_memory, "_GIVES_BACK", gives_back and lane_memory._GIVES_BACK)
    for lane in range(5):
        memory = LaneMemory(5, slots, dim, np.dtype(np.float32))
        assert memory.array.shape == (5, slots, dim)
        assert not memory.array.any()
        memory.array.fill(np.nan)
        memory.clear(lane)
        assert not memory.array[lane].any()
        assert np.isnan(np.delete(memory.array, lane, axis=0)).all()


@pytest.mark.parametrize("gives_back", [True, False])
def test_no_memory_is_a_capacity_error(gives_back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(12, "Cannot allocate memory") if gives_back else MemoryError("no memory")

    monkeypatch.setattr(lane_memory, "_GIVES_BACK", gives_back)
    monkeypatch.setattr(mmap, "mmap", fail)
    monkeypatch.setattr(np, "zeros", fail)
    with pytest.raises(CapacityError, match=r"lanes: found no memory \(.*\), expected 8,192 bytes for 4"):
        LaneMemory(4, 64, 8, np.dtype(np.float32))
