"""The longest earlier occurrence of a text's end, against a plain search."""

from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.runtime.methods.suffix_automaton import SuffixAutomaton

TEXTS = st.lists(st.integers(4, 6), max_size=60)


def longest_match(text: list[int]) -> int:
    """How many tokens at the end of the text occurred before, found by trying all places."""
    size = len(text)
    return max(
        (
            length
            for length in range(1, size)
            for end in range(length, size)
            if text[end - length : end] == text[-length:]
        ),
        default=0,
    )


@examples(100)
@given(text=TEXTS)
def test_match_is_the_longest_and_what_followed_it_is_found(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for size in range(1, len(text) + 1):
        automaton.extend(text[size - 1 : size])
        known = text[:size]
        assert automaton.matched == longest_match(known)
        found = automaton.continuation(7)
        if not automaton.matched:
            assert found == []
            continue
        # Somewhere before the end, the match is followed by what was found; past the end it is periodic.
        assert len(found) == 7
        whole = known + found
        matched = known[-automaton.matched :]
        places = [end for end in range(automaton.matched, size) if known[end - automaton.matched : end] == matched]
        assert any(whole[end : end + 7] == found for end in places)


@examples(30)
@given(text=TEXTS, kept=st.integers(1, 9), pieces=st.lists(st.integers(1, 20), max_size=8))
def test_memory_is_bounded_and_the_end_is_what_counts(text: list[int], kept: int, pieces: list[int]) -> None:
    automaton, at = SuffixAutomaton(kept), 0
    for piece in pieces:
        automaton.extend(text[at : at + piece])
        at += piece
        end = automaton._tokens
        assert len(end) <= 2 * kept
        assert end == text[:at][len(text[:at]) - len(end) :]
        assert automaton.matched == longest_match(end)
        assert len(automaton._next) <= 2 * len(end) + 1


def test_a_repeated_byte_takes_constant_time_a_byte() -> None:
    automaton = SuffixAutomaton()
    automaton.extend([4] * 20_000)
    assert automaton.continuation(3) == [4, 4, 4]
