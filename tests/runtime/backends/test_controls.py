import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastblt.runtime.backends.controls import Controls, write_controls

CAPACITY = 24


def seen(position: int, first: int, rows: int, block: int, window: int | None, visible_from: int) -> set[int]:
    """Return the positions that the row at ``position`` of a call attends to, by definition."""
    in_block = first + rows - block <= position < first + rows
    last = first + rows - 1 if in_block else position
    return {
        other for other in range(last + 1) if other >= visible_from and (window is None or other > position - window)
    }


@st.composite
def calls(draw: st.DrawFn) -> dict[str, object]:
    rows = draw(st.integers(1, 12))
    position = draw(st.integers(0, 300))
    window = draw(st.none() | st.integers(1, 40))
    return {
        "position": position,
        "rows": rows,
        # What the caches no longer hold, no row may need: a window's first position at the earliest.
        "base": draw(st.integers(0, 0 if window is None else max(0, position - window + 1))),
        "window": window,
        "block": draw(st.just(0) | st.integers(0, rows)),
        "visible_from": draw(
            st.none()
            | st.integers(0, position)
            | st.lists(st.integers(0, position), min_size=rows, max_size=rows).map(np.array)
        ),
        "padded": draw(st.none() | st.integers(rows, CAPACITY)),
    }


@given(call=calls())
def test_rows_see_what_the_definition_says(call: dict) -> None:  # type: ignore[type-arg]
    controls = Controls(*(np.full(CAPACITY, -7) for _ in range(4)))
    write_controls(controls, **call)
    position, rows, base, padded = call["position"], call["rows"], call["base"], call["padded"] or call["rows"]
    assert controls.write_index[0] == position - base
    assert controls.positions[:padded].tolist() == list(range(position, position + padded))
    begins = np.broadcast_to(0 if call["visible_from"] is None else call["visible_from"], rows)
    for row in range(padded):
        slots = range(controls.visible_start[row], controls.visible_end[row])
        assert slots.start >= 0
        if row < rows:
            expected = seen(position + row, position, rows, call["block"], call["window"], int(begins[row]))
            assert {base + slot for slot in slots} == expected
        else:
            assert position + row - base in slots
    for array in controls[:3]:
        assert (array[padded:] == -7).all()


def test_rows_see_what_the_caches_hold_when_they_are_all_after_the_first_slot() -> None:
    controls = Controls(*(np.zeros(4, dtype=np.int64) for _ in range(4)))
    for rows in (1, 3):
        write_controls(controls, 100, rows, 90, None)
        assert controls.visible_start[:rows].tolist() == [0] * rows
        write_controls(controls, 100, rows, 90, 64)
        assert controls.visible_start[:rows].tolist() == [0] * rows
