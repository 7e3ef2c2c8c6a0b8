"""Stop strings: where the text ends, and which bytes are held back until they cannot be one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from fakes.scripted_text import METHODS, PROMPT, REST, TEXT, collect
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.tokens import BOS_ID, EOS_ID, encode
from fastblt.runtime import stop_strings
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.stop_strings import StopSearch

Scripted = Callable[..., Backend]


def naive_stop(text: bytes, strings: list[bytes], count: int) -> tuple[bytes, str]:
    """Byte by byte: the text before the stop string that is complete first (of several, the longest)."""
    for end in range(1, min(count, len(text)) + 1):
        found = [s for s in strings if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], "stop"
    return text[:count], "length"


def may_become_stop(text: bytes, strings: list[bytes]) -> int:
    """Bytes at the end that a longer text could turn into a stop string."""
    starts = [i for i in range(len(text)) if any(len(text) - i < len(s) and s.startswith(text[i:]) for s in strings)]
    return len(text) - min(starts, default=len(text))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["END"], REST[: REST.index(b"END")]),
        ([b"fox"], REST[: REST.index(b"fox")]),
        (["time there was a fox. The"], b"upon a "),
        (["u"], b""),
        (["zebra"], REST[:70]),
        (["END", "den"], REST[: REST.index(b"den")]),
        (["x. The", ". T"], REST[: REST.index(b". T")]),
        (["fox. Thx", "a fox. The cow"], REST[:70]),
        (["ox. ", "fox. "], REST[: REST.index(b"fox. ")]),
        (["ce upon"], REST[:70]),  # begins in the prompt: only new text is looked at
    ],
)
def test_text_ends_before_the_first_stop_string(
    scripted: Scripted, method: str, stop: list[bytes | str], expected: bytes
) -> None:
    misdrafted = range(1, 90, 5)
    found, chunks = collect(BltRuntime(scripted(TEXT, misdrafted=misdrafted)), PROMPT, 70, method=method, stop=stop)
    assert found.data == expected == b"".join(c.data for c in chunks)
    assert found.finish == ("length" if len(expected) == 70 else "stop")
    assert found.stats.new_bytes == len(expected)


@examples(120)
@given(
    text=st.text("ab", min_size=34, max_size=34),
    strings=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    k=st.integers(0, 8),
    count=st.integers(0, 25),
    misdrafted=st.sets(st.integers(1, 34)),
)
def test_stop_strings_equal_naive_search(
    scripted: Scripted, text: str, strings: list[str], k: int, count: int, misdrafted: set[int]
) -> None:
    script, stops = text.encode(), [s.encode() for s in strings]
    runtime = BltRuntime(scripted(script, misdrafted=misdrafted))
    method = f"s:{k}" if k else "ar"
    found, chunks = collect(runtime, b"", count, method=method, stop=strings)
    assert (found.data, found.finish) == naive_stop(script, stops, count)
    assert b"".join(c.data for c in chunks) == found.data


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_held_back_until_they_cannot_be_a_stop_string(scripted: Scripted, method: str) -> None:
    stops = [b"fox had a cow", b"a time thex"]
    backend, count = scripted(TEXT), 70
    step = 1 if method == "ar" else int(method[2:]) + 1
    out, found = b"", []
    for chunk in BltRuntime(backend).stream(PROMPT, count, method=method, stop=stops):
        out += chunk.data
        rounds = sum(part == "patcher" for part, _, _ in backend.calls)  # type: ignore[attr-defined]
        if chunk.data:
            found.append((min(count, 1 + step * (rounds - 1)), len(out)))
    assert out == REST[:count]
    # Bytes that are decided after each round, and those of them that may be shown.
    decided = [min(count, 1 + step * i) for i in range(count)]
    shown = {n: n - (may_become_stop(REST[:n], stops) if n < count else 0) for n in decided}
    expected = [(n, shown[n]) for i, n in enumerate(decided) if shown[n] > (shown[decided[i - 1]] if i else 0)]
    assert found == expected
    assert any(shown[n] < n for n in decided)


def test_held_bytes_are_released_when_generation_ends(scripted: Scripted) -> None:
    end = REST.index(b"fox. T") + 4
    found, _ = collect(BltRuntime(scripted(TEXT)), PROMPT, end, stop=["fox. The dog"])
    assert (found.data, found.finish) == (REST[:end], "length")
    tokens = [*encode(PROMPT + REST[:end], bos=False), EOS_ID, *encode(REST, bos=False)]
    found, _ = collect(BltRuntime(scripted(tokens)), PROMPT, 70, stop=["fox. The dog"])
    assert (found.data, found.finish) == (REST[:end], "eos")


@pytest.mark.parametrize("stop", ["fox", b"fox"])
def test_single_stop_string_is_no_list_of_characters(scripted: Scripted, stop: str | bytes) -> None:
    """Either it is taken as one string, or refused."""
    try:
        found = BltRuntime(scripted(TEXT)).generate(PROMPT, 70, method="ar", stop=stop)
    except (TypeError, ValueError):
        return
    assert (found.data, found.finish) == (REST[: REST.index(b"fox")], "stop")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", ["fox. The fox had", "den. END", "was a fox. The fox has"])
def test_boundaries_lie_in_the_text_when_bytes_are_held_back(scripted: Scripted, method: str, stop: str) -> None:
    """The bytes that a stop string takes away have no boundaries."""
    runtime = BltRuntime(scripted(TEXT, surprising=range(0, 200, 2)))
    found, chunks = collect(runtime, PROMPT, 70, method=method, stop=[stop])
    boundaries = [b for c in chunks for b in c.boundaries]
    # Position 2n is byte 2n - 1 of the text; BOS, a patch by itself, stands before the prompt.
    expected = [b for b in range(-6, len(found.data)) if (b + len(PROMPT) + 1) % 2 == 0]
    known = len(found.data) - 1  # whether the last byte is scored depends on what follows it
    assert [b for b in boundaries if b < known] == [b for b in expected if b < known]
    assert all(b < len(found.data) for b in boundaries)


@pytest.mark.parametrize("method", METHODS)
def test_stop_string_is_found_across_a_token_without_a_byte(scripted: Scripted, method: str) -> None:
    tokens = [*encode(PROMPT + REST[:10], bos=False), BOS_ID, *encode(REST[10:], bos=False)]
    found, _ = collect(BltRuntime(scripted(tokens)), PROMPT, 30, method=method, stop=[REST[8:13]], stop_at_eos=False)
    assert (found.data, found.finish) == (REST[:8], "stop")


@examples(200)
@given(
    text=st.text("ab", max_size=60) | st.text("abc", max_size=40),
    strings=st.lists(
        st.text("ab", min_size=1, max_size=9) | st.text("abc", min_size=1, max_size=4), min_size=1, max_size=5
    ),
)
def test_search_equals_its_definition(text: str, strings: list[str]) -> None:
    data, stops = text.encode(), [s.encode() for s in strings]
    search = StopSearch(stops)
    for end in range(1, len(data) + 1):
        read = data[:end]
        complete = max((len(s) for s in stops if read.endswith(s)), default=0)
        assert search.read(data[end - 1]) == complete
        if complete:
            return
        assert search.held_back == may_become_stop(read, stops)


@pytest.mark.parametrize(
    "strings", [[b"a" * 3000 + b"b"], [b"ab" * 1500 + b"c"], [b"a" * n + b"b" for n in range(600)]]
)
def test_search_is_quick_however_long_the_strings_are(strings: list[bytes]) -> None:
    """Steps are counted in lines of Python; whoever compares every byte's suffixes takes 10^7 and more."""
    search, text = StopSearch(strings), 2 * strings[-1][:-1]
    steps = count_steps(lambda: [search.read(byte) for byte in text])
    assert steps <= 60 * len(text)
    assert search.held_back == len(strings[-1]) - 1


def count_steps(work: Callable[[], object]) -> int:
    """Return the number of lines that Python executes in the search."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return trace if frame.f_code.co_filename == stop_strings.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps
