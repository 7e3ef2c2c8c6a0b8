from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.shown import shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=100), inner, max_size=12),
)


@pytest.mark.parametrize("value", [None, True, 3, -2.5, "a", [1, "b"], (3, 4), {"a": {"b": [1]}}, [], {}])
def test_short_values_are_shown_whole(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**400, "'an integer of 1329 bits'"),
        (-(10**5000), "'an integer of 16610 bits'"),
        ("x" * 100, repr("x" * 80 + "... (100 characters)")),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, '... (20 items)']"),
        ([[[[1]]]], "[[['...']]]"),
        ({"a": {"b": {"c": {"d": 1}}}}, "{'a': {'b': {'c': '...'}}}"),
        ("\x1b[31m\n", r"'\x1b[31m\n'"),
        (b"x" * 100, "b'" + "x" * 78),
        (np.zeros((2, 1)), r"array([[0.],\n       [0.]])"),
    ],
    ids=range(9),
)
def test_long_deep_and_unprintable_values_are_cut(value: object, text: str) -> None:
    assert shown(value) == text


def test_value_deeper_than_the_stack_is_shown() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "[[['...']]]"


@examples(30)
@given(JSON)
def test_whatever_was_found_fits_a_line(value: object) -> None:
    text = shown(value)
    assert text.isprintable()
    assert len(text) < 1_000 * 100
