"""A matcher says what may follow, what must, and goes back."""

from __future__ import annotations

import numpy as np
import pytest

from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID
from fastblt.runtime.grammar.matcher import Matcher


def following(matcher: Matcher) -> set[int | str]:
    """Bytes that may follow, and ``end``."""
    allowed = np.flatnonzero(matcher.mask()).tolist()
    assert all(token == EOS_ID or token >= BYTE_OFFSET for token in allowed)
    return {"end" if token == EOS_ID else token - BYTE_OFFSET for token in allowed}


def read(matcher: Matcher, data: bytes) -> None:
    assert all(matcher.advance(BYTE_OFFSET + byte) for byte in data)


def test_it_knows_what_may_follow_and_where_the_text_may_end() -> None:
    matcher = Matcher("regex", "ab|abc")
    assert following(matcher) == {ord("a")}
    read(matcher, b"ab")
    assert following(matcher) == {ord("c"), "end"}
    read(matcher, b"c")
    assert following(matcher) == {"end"}
    assert matcher.advance(EOS_ID)
    assert matcher.ended
    assert following(matcher) == {"end"}


def test_it_goes_back_over_bytes_and_over_the_end() -> None:
    matcher = Matcher("regex", "ab|abc|axx")
    read(matcher, b"abc")
    assert matcher.advance(EOS_ID)
    assert matcher.advance(EOS_ID)
    matcher.rewind(4)
    assert matcher.ended
    matcher.rewind(3)
    assert not matcher.ended
    matcher.rewind(1)
    assert following(matcher) == {ord("b"), ord("x")}
    read(matcher, b"xx")
    assert matcher.length == 3
    with pytest.raises(ValueError, match=r"rewind: found length 4, expected 0\.\.3"):
        matcher.rewind(4)


def test_what_may_not_follow_is_not_read() -> None:
    matcher = Matcher("regex", "ab")
    for token in (BYTE_OFFSET + ord("b"), EOS_ID, BOS_ID):
        assert not matcher.advance(token)
    assert matcher.length == 0
    read(matcher, b"ab")
    assert not matcher.advance(BYTE_OFFSET + ord("b"))
    assert following(matcher) == {"end"}


def test_it_finds_the_bytes_that_must_follow() -> None:
    matcher = Matcher("regex", "(é{3}x|é{3}y)z?")
    assert bytes(token - BYTE_OFFSET for token in matcher.forced(63)) == "ééé".encode()
    assert len(matcher.forced(4)) == 4
    read(matcher, "éééx".encode())
    assert matcher.forced(63) == [], "it may end, or go on with z"
    assert Matcher("regex", "abc", forces=False).forced(63) == []


def test_texts_have_matchers_of_their_own() -> None:
    first, second = Matcher("regex", "a+b"), Matcher("regex", "a+b")
    read(first, b"aab")
    assert following(second) == {ord("a")}


def test_a_character_is_bytes_that_may_be_half_read() -> None:
    matcher = Matcher("regex", "[日月]")
    read(matcher, "日".encode()[:2])
    assert following(matcher) == {"日".encode()[2]}
