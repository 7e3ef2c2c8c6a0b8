"""Checks how calls are cut into pieces, and which question the patcher's answer ahead is for."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fastblt.runtime.backends.gpu.call import pieces
from fastblt.runtime.backends.gpu.graph import first_visible
from fastblt.runtime.backends.gpu.patcher_calls import LookAhead
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS


@given(st.integers(1, 500), st.integers(0, CALL_ROWS - 1))
def test_pieces_cover_all_rows_and_never_cut_a_block(rows: int, block: int) -> None:
    block = min(block, rows)
    found = list(pieces(rows, block))
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == rows
    assert all(1 <= end - first <= CALL_ROWS for first, end in found)
    assert found[-1][0] <= rows - block


@pytest.mark.parametrize(("position", "window", "first"), [(10, None, 0), (10, 4, 7), (10, 11, 0), (10, 100, 0)])
def test_row_sees_its_window_and_nothing_before_the_text(position: int, window: int | None, first: int) -> None:
    assert first_visible(position, window) == first


def ids(*tokens: int) -> Any:
    return np.array(tokens, dtype=np.int64)


@pytest.mark.parametrize(
    ("position", "asked", "expected"),
    [
        (7, ids(5, 6, 9), [0.1, 0.2, 0.3]),
        (7, ids(5, 6), [0.1, 0.2]),
        (8, ids(6, 9), None),
        (7, ids(5, 7), None),
        (7, ids(5, 6, 9, 1), None),
    ],
    ids=["all", "first ones", "other position", "other tokens", "more than is known"],
)
def test_answer_ahead_is_only_for_the_tokens_that_it_was_asked_for(
    position: int, asked: Any, expected: list[float] | None
) -> None:
    ahead = LookAhead(None, 100)
    entropies = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    ahead.keep(7, ids(5, 6, 9), None, entropies)
    entropies[:] = 0  # a later call overwrites what it was copied from
    found = ahead.take(position, asked)
    assert (None if found is None else found.round(3).tolist()) == (
        None if expected is None else np.array(expected, dtype=np.float32).round(3).tolist()
    )
    assert ahead.take(7, ids(5)) is None, "an answer is for one question"


@pytest.mark.parametrize(
    ("seen", "asked", "known"),
    [
        (None, ids(0, 0), True),
        (None, ids(0, 8), False),
        (3, ids(3, 3), True),
        (3, ids(3, 8), False),
        (3, ids(2, 2), False),
        (3, None, False),
    ],
)
def test_answer_ahead_is_only_for_the_document_that_it_was_asked_in(seen: int | None, asked: Any, known: bool) -> None:
    ahead = LookAhead(None, 100)
    ahead.keep(7, ids(5, 6, 9), seen, np.array([0.1, 0.2, 0.3], dtype=np.float32))
    assert (ahead.take(7, ids(5, 6), asked) is not None) == known


def test_answer_ahead_is_forgotten_and_nothing_is_asked_without_a_patcher() -> None:
    ahead = LookAhead(None, 100)
    ahead.keep(7, ids(5), None, np.array([0.1], dtype=np.float32))
    ahead.forget()
    assert ahead.take(7, ids(5)) is None
    assert ahead.graph_for(7, 1) is None
