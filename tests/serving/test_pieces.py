"""Characters are never split, whatever pieces their bytes arrive in."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fastblt.runtime.generation import Chunk
from fastblt.runtime.serving.pieces import LEAST_LOGPROB, PieceReader, details

texts = st.one_of(st.binary(max_size=24), st.text(max_size=12).map(lambda text: text.encode("utf-8", "replace")))


def chunks_of(data: bytes, cuts: list[int], logprobs: bool = False) -> list[Chunk]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [
        Chunk(data[a:b], ("sampled",) * (b - a), b"", (), (-0.5,) * (b - a) if logprobs else ())
        for a, b in itertools.pairwise(edges)
    ]


@settings(max_examples=50)
@given(texts, st.lists(st.integers(0, 30), max_size=8), st.booleans())
def test_pieces_join_to_the_text(data: bytes, cuts: list[int], logprobs: bool) -> None:
    reader = PieceReader()
    pieces = [reader.read([chunk]) for chunk in chunks_of(data, cuts, logprobs)]
    text = data.decode("utf-8", "replace")
    assert "".join(piece.text for piece in pieces) + reader.finish() == text
    assert b"".join(piece.data for piece in pieces) == data
    if logprobs:
        found = [each for piece in pieces for each in piece.logprobs]
        assert bytes(each.byte for each in found) == data
        for each in found:
            assert text[each.offset] == chr(each.byte) or each.byte >= 0x80
            assert each.token == (chr(each.byte) if each.byte < 0x80 else f"bytes:\\x{each.byte:02x}")


def test_a_character_waits_for_its_last_byte() -> None:
    reader = PieceReader()
    euro = "a€b".encode()
    texts = [reader.read([Chunk(bytes([byte]), ("sampled",), b"", (), (-1.0,))]) for byte in euro]
    assert [piece.text for piece in texts] == ["a", "", "", "€", "b"]
    assert [piece.logprobs[0].offset for piece in texts] == [0, 1, 1, 1, 2]


def test_a_prompt_may_end_inside_a_character() -> None:
    reader = PieceReader()
    euro = "€".encode()
    assert reader.echo(euro[:2]).text == ""
    assert reader.read([Chunk(euro[2:], ("sampled",), b"", ())]).text == "€"
    assert reader.finish() == ""


def test_details_and_impossible_bytes() -> None:
    chunk = Chunk(b"ab", ("accepted", "corrected"), b"\xff", (-1, 1), (-float("inf"), -0.1))
    assert details(chunk) == {
        "bytes": "YWI=",
        "origins": ["accepted", "corrected"],
        "boundaries": [-1, 1],
        "rejected": "/w==",
    }
    assert PieceReader().read([chunk]).logprobs[0].logprob == LEAST_LOGPROB
