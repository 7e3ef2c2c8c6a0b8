"""Groups of lanes: every call is in one of them, and no row that nobody asked for is written where it matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastblt.runtime.backends.cpu.lane_classes import LaneClasses
from fastblt.runtime.backends.cpu.lane_groups import IDLE_ROWS, Group, Member, make_groups
from fastblt.runtime.backends.cpu.lanes import Lanes


def lanes_of(size: int) -> Lanes:
    return Lanes(["key"], 1, np.dtype(np.float32), size, LaneClasses(None, 300, exact=False))


def groups_of(lanes: Lanes, *members: tuple[int, int]) -> list[Group]:
    """Return the groups of calls, each a seat and its rows."""
    return make_groups(lanes, [Member(call, seat, 0, rows) for call, (seat, rows) in enumerate(members)])


def seats_of(groups: list[Group]) -> Any:
    return [[member.seat for member in group.members] for group in groups]


def test_members_are_in_one_group_each() -> None:
    random = np.random.default_rng(1)
    for _ in range(2000):
        size = int(random.integers(1, 12))
        lanes = lanes_of(size)
        lanes.class_of = random.integers(-1, 3, size).tolist()
        lanes.end = [int(random.integers(0, lanes.classes.slots[of])) if of >= 0 else 0 for of in lanes.class_of]
        taken = [seat for seat in random.permutation(size).tolist() if lanes.class_of[seat] >= 0]
        members = []
        for call, seat in enumerate(taken[: int(random.integers(0, size + 1))]):
            rows = int(random.choice([1, 1, 2, 5, 9, 30]))
            members.append(Member(call, seat, lanes.end[seat], rows))
            lanes.end[seat] += rows
        if not members:
            continue
        groups = make_groups(lanes, members)
        assert sorted(member for group in groups for member in group.members) == sorted(members)
        for group in groups:
            assert group.rows == max(member.rows for member in group.members)
            assert (group.rows == 1) == all(member.rows == 1 for member in group.members)
            assert group.rows == 1 or min(member.rows for member in group.members) > 1
            seats = range(group.first, group.first + group.lanes)
            mine = [member.seat for member in group.members]
            assert (mine, mine[0], mine[-1]) == (sorted(mine), seats[0], seats[-1])
            assert {lanes.class_of[seat] for seat in mine} == {group.of}
            for seat in set(seats) - set(mine):
                if lanes.class_of[seat] == group.of:
                    assert lanes.end[seat] + group.rows <= lanes.classes.slots[group.of]


@pytest.mark.parametrize("idle", ["free", "another class", "same class", "in another group"])
def test_idle_lanes_between_members(idle: str) -> None:
    """Some are cheaper than a call."""
    lanes = lanes_of(40)
    lanes.class_of = [{"free": -1, "another class": 1}.get(idle, 0)] * 40
    calls = [(seat, 2) for seat in (2, 3)] if idle == "in another group" else []
    for last, shared in ((IDLE_ROWS + 1, True), (IDLE_ROWS + 2, False)):
        lanes.class_of[0] = lanes.class_of[last] = 0
        groups = groups_of(lanes, (0, 1), (last, 1), *calls)
        mine = [seats for seats in seats_of(groups) if seats[0] not in (2, 3)]
        assert mine == ([[0, last]] if shared else [[0], [last]])


def test_idle_lane_without_room_divides_a_group() -> None:
    lanes = lanes_of(3)
    lanes.class_of = [0, 0, 0]
    for free, found in ((4, [[0, 2]]), (3, [[0], [2]])):
        lanes.end[1] = lanes.classes.slots[0] - free
        assert seats_of(groups_of(lanes, (0, 4), (2, 4))) == found


def test_idle_rows_are_bounded() -> None:
    lanes = lanes_of(2)
    lanes.class_of = [0, 0]
    assert seats_of(groups_of(lanes, (0, 2 + IDLE_ROWS), (1, 2))) == [[0, 1]]
    assert seats_of(groups_of(lanes, (0, 3 + IDLE_ROWS), (1, 2))) == [[0], [1]]
    assert seats_of(groups_of(lanes, (0, 2), (1, 1))) == [[0], [1]]
