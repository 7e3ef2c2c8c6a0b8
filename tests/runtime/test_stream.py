"""A stream of chunks: its text, its tokens, and its end by closing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastblt.models.tokens import BOS_ID, encode
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.text import TextDecoder

METHODS = ("ar", "s:3")
Scripted = Callable[..., Backend]
TEXT = "Größe, Straße, “Übermut”: naïve 🦊🦊 and more of it, so that drafts have room to run past the end.".encode()


@given(data=st.binary(max_size=30) | st.text(max_size=20).map(str.encode), cuts=st.lists(st.integers(0, 30)))
def test_decoded_pieces_are_the_text_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    decoder = TextDecoder()
    pieces = [decoder.decode(data[a:b]) for a, b in pairwise(ends)]
    assert "".join([*pieces, decoder.finish()]) == data.decode("utf-8", errors="replace")


def test_characters_wait_until_they_are_whole() -> None:
    decoder = TextDecoder()
    assert [decoder.decode(piece) for piece in (b"a\xe2", b"\x82", b"\xacb\xff", b"c\xe2")] == ["a", "", "€b�", "c"]
    assert decoder.finish() == "�"


@pytest.mark.parametrize("method", ["ar", "s:3", "auto"])
def test_text_of_a_stream_is_that_of_the_generation(scripted: Scripted, method: str) -> None:
    runtime = BltRuntime(scripted(TEXT))
    for size in range(20):
        pieces = list(runtime.stream(b"Gr", size, method=method).text())
        assert "".join(pieces) == runtime.generate(b"Gr", size, method=method).text
        assert all(pieces)
        assert "�" not in "".join(pieces[:-1])


def test_generation_is_bytes_and_text(scripted: Scripted) -> None:
    found = BltRuntime(scripted(TEXT)).generate(b"Gr", 5)
    assert bytes(found) == found.data == TEXT[2:7]
    assert str(found) == found.text == "öße"


def test_stream_ends_where_it_is_closed(scripted: Scripted) -> None:
    backend = scripted(TEXT)
    runtime = BltRuntime(backend)
    stream = runtime.stream(b"Gr", 40, method="ar")
    first = next(stream)
    stream.close()
    stream.close()
    assert stream.finish == "closed"
    assert runtime.sequences_in_use == 0
    calls = len(backend.calls)  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(ValueError, match="stream: closed before its end, expected an open one"):
            next(stream)
    with pytest.raises(ValueError, match="stream: closed"):
        next(stream.text())
    assert len(backend.calls) == calls  # type: ignore[attr-defined]
    assert first.data == TEXT[2:3]
    assert stream.stats.new_bytes == 1


def test_closing_before_the_first_chunk_computes_nothing(scripted: Scripted) -> None:
    backend = scripted(TEXT)
    with BltRuntime(backend).stream(b"Gr", 40) as stream:
        pass
    assert stream.finish == "closed"
    assert backend.calls == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [0, 12])
def test_closing_after_the_end_changes_nothing(scripted: Scripted, count: int) -> None:
    with BltRuntime(scripted(TEXT)).stream(b"Gr", count) as stream:
        assert b"".join(chunk.data for chunk in stream) == TEXT[2 : 2 + count]
    assert stream.finish == "length"
    assert list(stream) == []


def test_stream_is_closed_when_its_block_fails(scripted: Scripted) -> None:
    stream = BltRuntime(scripted(TEXT)).stream(b"Gr", 40)
    next(stream)
    with pytest.raises(KeyError), stream:
        raise KeyError
    assert stream.finish == "closed"


def test_tokens_are_those_of_the_bytes_when_a_stop_string_ends(scripted: Callable[..., Backend]) -> None:
    script: Sequence[int] = [
        *encode(b"ab", bos=False).tolist(),
        BOS_ID,
        0,
        *encode(b"cd.. more text", bos=False).tolist(),
    ]
    runtime = BltRuntime(scripted(list(script)))
    for method in METHODS:
        found = runtime.generate(b"a", 12, method=method, stop=["d."])
        assert (found.data, found.finish, list(found.tokens)) == (b"bc", "stop", list(script[1:5]))
        found = runtime.generate(b"a", 12, method=method, stop=["cd"])
        assert (found.data, list(found.tokens)) == (b"b", list(script[1:4]))
        stream = runtime.stream(b"a", 6, method=method, stop=["zzz"])
        assert b"".join(chunk.data for chunk in stream) == b"bcd."
        assert stream.tokens == list(script[1:7])
