import io

import pytest
from rich.console import Console

from fastblt.commands.show import BOUNDARY, PROMPT, REJECTED, Marker, Show, escaped
from fastblt.runtime.generation import Chunk

BAR = ("", BOUNDARY)


def marked(prompt: bytes, *chunks: Chunk) -> list[tuple[str, str]]:
    """Pieces of a generation; neighbors of one kind joined."""
    marker = Marker(prompt)
    joined: list[tuple[str, str]] = []
    for piece in [*(piece for chunk in chunks for piece in marker.mark(chunk)), *marker.finish()]:
        if joined and joined[-1][1] == piece.kind != BOUNDARY:
            joined[-1] = (joined[-1][0] + piece.text, piece.kind)
        else:
            joined.append((piece.text, piece.kind))
    return joined


def sampled(data: bytes, *boundaries: int) -> Chunk:
    return Chunk(data, ("sampled",) * len(data), b"", boundaries)


def test_prompt_comes_first_with_its_boundaries() -> None:
    assert marked(b"abcd", sampled(b"x", -5, -3, -1)) == [
        ("ab", PROMPT), BAR, ("cd", PROMPT), BAR, ("x", "sampled")
    ]  # fmt: skip


def test_prompt_is_shown_when_nothing_is_generated() -> None:
    assert marked(b"ab") == [("ab", PROMPT)]
    assert marked(b"") == []


def test_last_byte_of_chunk_gets_boundary_with_next_chunk() -> None:
    first = Chunk(b"xy", ("accepted", "free"), b"", (0,))
    assert marked(b"", sampled(b"s"), first, sampled(b"z", 2)) == [
        ("s", "sampled"), BAR, ("x", "accepted"), ("y", "free"), BAR, ("z", "sampled")
    ]  # fmt: skip


def test_rejected_bytes_stand_before_their_correction() -> None:
    chunk = Chunk(b"abc", ("accepted", "accepted", "corrected"), b"z\n", ())
    assert marked(b"", chunk) == [("ab", "accepted"), ("z\\n", REJECTED), ("c", "corrected")]


def test_rejected_bytes_wait_for_correction_that_is_held_back() -> None:
    held = Chunk(b"a", ("accepted",), b"zz", ())
    later = Chunk(b"bc", ("corrected", "accepted"), b"", ())
    assert marked(b"", held, later) == [
        ("a", "accepted"), ("zz", REJECTED), ("b", "corrected"), ("c", "accepted")
    ]  # fmt: skip


def test_rejected_bytes_are_left_out_when_text_ends_before_them() -> None:
    assert marked(b"", Chunk(b"a", ("accepted",), b"zz", ())) == [("a", "accepted")]


def test_character_split_over_chunks_and_origins_is_whole() -> None:
    euro = "€".encode()
    first = Chunk(euro[:2], ("accepted", "accepted"), b"", (0,))
    second = Chunk(euro[2:] + b"!", ("corrected", "sampled"), b"\xad", (2,))
    assert marked(b"", first, second) == [
        ("\\xad", REJECTED), ("€", "accepted"), BAR, BAR, ("!", "sampled")
    ]  # fmt: skip


def test_prompt_may_end_inside_character() -> None:
    euro = "€".encode()
    assert marked(b"a" + euro[:1], sampled(euro[1:] + b"b")) == [("a€", PROMPT), ("b", "sampled")]


def test_bytes_that_are_no_utf8_become_escapes_in_order() -> None:
    chunk = Chunk(b"\xe2\xffA\xc3", ("accepted", "corrected", "free", "sampled"), b"q", (0,))
    assert marked(b"\x80", chunk) == [
        ("\\x80", PROMPT), ("\\xe2", "accepted"), BAR, ("q", REJECTED), ("\\xff", "corrected"),
        ("A", "free"), ("\\xc3", "sampled"),
    ]  # fmt: skip


def test_unprintable_characters_become_escapes_but_lines_end() -> None:
    assert marked(b"", sampled(b"a\x1b[0m\x00\n\tb")) == [("a\\x1b[0m\\x00\n\tb", "sampled")]
    assert escaped("a\n\u200bé".encode() + b"\xff") == "a\\n\\u200bé\\xff"


def shown(console: Console, prompt: bytes, *chunks: Chunk) -> str:
    show = Show(console, prompt)
    for chunk in chunks:
        show.write(chunk)
    show.finish()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


CHUNK = Chunk(b"a b  c", ("sampled", *("accepted",) * 3, "free", "corrected"), b"zz", (-1, 1))


def test_plain_text_has_marks_when_output_is_no_terminal() -> None:
    text = shown(Console(file=io.StringIO(), width=5), b"long prompt ", CHUNK)
    assert text == "long prompt │a │b  [-zz-]c\n"


def test_bar_is_ascii_when_encoding_is() -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"  # type: ignore[assignment]

    assert "|a |b" in shown(Console(file=Ascii()), b"p", CHUNK)


@pytest.mark.parametrize(
    ("code", "text"),
    [("2", "p"), ("2", "│"), ("32", " "), ("36", " "), ("9;31", "zz"), ("33", "c")],
)
def test_terminal_gets_colors(code: str, text: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=False)
    assert f"\x1b[{code}m{text}\x1b[0m" in shown(console, b"p", CHUNK)


def test_marks_replace_colors_when_they_are_unwanted() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=True)
    assert "[-zz-]" in shown(console, b"p", CHUNK)


@pytest.mark.parametrize("colored", [True, False])
def test_legend_names_every_mark(colored: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=colored, color_system="standard" if colored else None)
    Show(console, b"").legend()
    assert isinstance(console.file, io.StringIO)
    legend = console.file.getvalue()
    names = ["patch boundary", "rejected draft"]
    assert all(name in legend for name in [*names, *(["accepted draft", "correction"] if colored else [])])
