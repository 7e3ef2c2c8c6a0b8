"""Prints the view of ``generate --show``: patch boundaries, and where each byte came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console

from fastblt.runtime.generation import Chunk

BOUNDARY = "boundary"
PROMPT = "prompt"
REJECTED = "rejected"

STYLES = {
    PROMPT: "dim",
    "sampled": "",
    "accepted": "green",
    "free": "cyan",
    "denoised": "magenta",
    "corrected": "yellow",
    "forced": "blue",
    REJECTED: "red strike",
    BOUNDARY: "dim",
}

_LEGEND = (
    (PROMPT, "prompt"),
    ("sampled", "sampled"),
    ("accepted", "accepted draft"),
    ("free", "free byte after a whole draft"),
    ("denoised", "denoised block"),
    (REJECTED, "rejected draft"),
    ("corrected", "its correction"),
    ("forced", "forced by a grammar"),
)


@dataclass(frozen=True)
class Piece:
    """Holds text of one kind: a byte's origin, or `PROMPT`, `REJECTED`, `BOUNDARY`."""

    text: str
    kind: str


@dataclass
class Marker:
    """Turns chunks into pieces, in the order in which they are printed.

    A boundary is printed with the byte after it. Whether the last byte of a chunk ends a patch is known with the next
    chunk, so nothing has to be held back. Rejected bytes come before the byte that corrects them. A UTF-8 character of
    several bytes has the kind of its first byte; rejected bytes that belong inside it come before it, boundaries after
    it. Bytes that are not UTF-8, and characters that cannot be printed, become escapes.
    """

    prompt: bytes
    _ends: set[int] = field(default_factory=set)
    _rejected: deque[bytes] = field(default_factory=deque)
    _character: bytearray = field(default_factory=bytearray)
    """Bytes of a character that is not complete yet."""
    _inside: list[Piece] = field(default_factory=list)
    """The same bytes as escapes, and what is between them."""
    _next: int | None = None
    """Offset of the next new byte; None: nothing has been printed, not even the prompt."""

    def mark(self, chunk: Chunk) -> Iterator[Piece]:
        """Yield the pieces of a chunk; before those of the first, the prompt's, whose boundaries it reports."""
        self._ends.update(chunk.boundaries)
        if chunk.rejected:
            self._rejected.append(chunk.rejected)
        yield from self._begin()
        for byte, origin in zip(chunk.data, chunk.origins, strict=True):
            yield from self._byte(byte, origin)

    def finish(self) -> Iterator[Piece]:
        """Yield what is left when no chunk follows."""
        yield from self._begin()
        yield from self._broken_character()

    def _begin(self) -> Iterator[Piece]:
        if self._next is None:
            self._next = -len(self.prompt)
            for byte in self.prompt:
                yield from self._byte(byte, PROMPT)

    def _byte(self, byte: int, kind: str) -> Iterator[Piece]:
        assert self._next is not None
        # BOS is a patch by itself: a boundary before the first byte would mean nothing.
        if self._next - 1 in self._ends and self._next > -len(self.prompt):
            yield from self._between(Piece("", BOUNDARY))
        self._next += 1
        if kind == "corrected" and self._rejected:
            yield from self._between(Piece(escaped(self._rejected.popleft()), REJECTED))
        yield from self._decode(byte, kind)

    def _between(self, piece: Piece) -> Iterator[Piece]:
        if self._character:
            self._inside.append(piece)
        else:
            yield piece

    def _decode(self, byte: int, kind: str) -> Iterator[Piece]:
        escape = Piece(f"\\x{byte:02x}", kind)
        try:
            text = (self._character + bytes([byte])).decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                self._character.append(byte)
                self._inside.append(escape)
            elif self._character:
                yield from self._broken_character()
                yield from self._decode(byte, kind)
            else:
                yield escape
            return
        inside, self._inside = self._inside, []
        self._character.clear()
        yield from (piece for piece in inside if piece.kind == REJECTED)
        yield Piece(_printable(text, keep="\n\t"), inside[0].kind if inside else kind)
        yield from (piece for piece in inside if piece.kind == BOUNDARY)

    def _broken_character(self) -> Iterator[Piece]:
        inside, self._inside = self._inside, []
        self._character.clear()
        yield from inside


def escaped(data: bytes) -> str:
    """Return bytes as text in one line; what cannot be printed, line ends included, becomes an escape."""
    return _printable(data.decode("utf-8", errors="backslashreplace"))


def _printable(text: str, keep: str = "") -> str:
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


class Show:
    """Prints chunks as they arrive: in color, or with marks where there are no colors."""

    def __init__(self, console: Console, prompt: bytes) -> None:
        self.console = console
        self._marker = Marker(prompt)
        self._colored = console.color_system is not None and not console.no_color
        self._bar = "│" if console.encoding.lower().startswith("utf") else "|"

    def legend(self) -> None:
        """Print what the colors, or the marks, mean."""
        if self._colored:
            for kind, meaning in _LEGEND:
                self._out(meaning, kind)
                self._out("  ", "sampled")
        else:
            self._out("[-rejected draft-]  ", "sampled")
        self._out(self._bar, BOUNDARY)
        self._out(" patch boundary\n\n", "sampled")

    def write(self, chunk: Chunk) -> None:
        """Print one chunk."""
        self._print(self._marker.mark(chunk))

    def finish(self) -> None:
        """Print what is left, and end the line."""
        self._print(self._marker.finish())
        self._out("\n", "sampled")

    def _print(self, pieces: Iterator[Piece]) -> None:
        text, kind = "", "sampled"
        for piece in pieces:
            if piece.kind != kind:
                self._out(text, kind)
                text, kind = "", piece.kind
            text += self._form(piece)
        self._out(text, kind)

    def _form(self, piece: Piece) -> str:
        if piece.kind == BOUNDARY:
            return self._bar
        return f"[-{piece.text}-]" if piece.kind == REJECTED and not self._colored else piece.text

    def _out(self, text: str, kind: str) -> None:
        # Console.print would wrap, expand tabs and strip spaces at line ends.
        if text:
            self.console.out(text, style=STYLES[kind], end="", highlight=False)
