"""Decides which lanes share a call of a graph: those beside one another, with about as many rows each.

A call covers neighboring lanes of one class, and has as many rows for each of them as the sequence with the most. Rows
and lanes that nobody asked for are computed, too; once they cost more than another read of the weights, another call
is made instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastblt.runtime.backends.cpu.lanes import Lanes

#: Rows that nobody asked for which a call may have: a read of all weights takes as long as computing some 24 rows.
IDLE_ROWS = 24


class Member(NamedTuple):
    """Names a sequence's part of a call."""

    call: int
    """Which of the calls that were asked for."""
    seat: int
    position: int
    """Of its first row; of the global transformer, of its first patch."""
    rows: int


class Group(NamedTuple):
    """Describes a call of a graph for several sequences."""

    of: int
    """Class of their lanes."""
    first: int
    """The first lane."""
    lanes: int
    """Number of lanes, idle ones included."""
    rows: int
    """Number of rows of each lane, idle ones included."""
    members: list[Member]


def make_groups(lanes: Lanes, members: Sequence[Member]) -> list[Group]:
    """Return calls that cover all members, whose lanes hold what they need and have room for the most rows of them."""
    groups = []
    left = sorted(members, key=lambda member: (-lanes.class_of[member.seat], -member.rows, member.seat))
    while left:
        of, rows = lanes.class_of[left[0].seat], left[0].rows
        taken = _alike(lanes, left, of, rows)
        left = left[len(taken) :]
        taken.sort(key=lambda member: member.seat)
        groups += _neighbors(lanes, taken, of, rows)
    return groups


def _alike(lanes: Lanes, members: list[Member], of: int, rows: int) -> list[Member]:
    """Return the first members, those that share a class and have about as many rows."""
    count = len(members)
    if members[-1].rows == rows and lanes.class_of[members[-1].seat] == of:
        return members
    for index, member in enumerate(members):
        if lanes.class_of[member.seat] != of:
            count = index
            break
    for index in range(1, count):
        # Attention computes a single row with other kernels than several, whose last bit differs.
        if members[index].rows == 1 < rows or (count - index) * (rows - members[index].rows) > IDLE_ROWS:
            return members[:index]
    return members[:count]


def _neighbors(lanes: Lanes, members: list[Member], of: int, rows: int) -> list[Group]:
    """Return groups of members, which are in the order of their seats, with few idle lanes between them."""
    first, last = members[0].seat, members[-1].seat
    if last - first + 1 == len(members):
        return [Group(of, first, len(members), rows, members)]
    groups, begin = [], 0
    for index in range(1, len(members) + 1):
        if index < len(members):
            idle = range(members[index - 1].seat + 1, members[index].seat)
            if len(idle) * rows <= IDLE_ROWS and all(has_room(lanes, lane, of, rows) for lane in idle):
                continue
        mine = members[begin:index]
        count = mine[-1].seat - mine[0].seat + 1
        groups.append(Group(of, mine[0].seat, count, max(member.rows for member in mine), mine))
        begin = index
    return groups


def has_room(lanes: Lanes, lane: int, of: int, rows: int) -> bool:
    """Return whether a call may write rows that nobody reads behind those of an idle lane."""
    return lanes.class_of[lane] != of or lanes.end[lane] + rows - lanes.base[lane] <= lanes.classes.slots[of]
