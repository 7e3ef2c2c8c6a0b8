"""Selects the held-out text and the prompts in this folder from a built corpus, the same ones each time.

Usage: python calibration/heldout/select_pieces.py CORPUS OUT (CORPUS: folder written by `fastblt data`).

Texts and prompts never overlap, so that a model calibrated on the texts can be measured on the prompts. This script is
not part of the package.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.models.atomic_file import write_file
from fastblt.models.training.corpus import Corpus, load_corpus
from fastblt.models.training.corpus_sources import CorpusError

PIECES_PER_CORPUS = 6
PIECE_BYTES = 8192
PROMPTS_PER_CORPUS = 24
PROMPT_BYTES = (64, 160)
"""Shortest and longest prompt."""

_ROOM_BYTES = PIECE_BYTES + PIECE_BYTES // 2
"""Bytes that a document must have for each piece taken from it."""

_PROMPT_DOCUMENT = 4096
_LINE_BYTES = 36
_REPEATED_SHARE = 0.2
"""A held-out document with more of its lines (those of ``_LINE_BYTES`` or more) in training is left out."""


@dataclass
class _Document:
    """Holds a held-out document and the spans of it that are already taken."""

    name: str
    text: bytes
    taken: list[tuple[int, int]]

    def line_at(self, fraction: float) -> int:
        """Return the start of the first line at or after a fraction of the document."""
        return self.text.find(b"\n", int(fraction * len(self.text))) + 1

    def is_free(self, start: int, end: int) -> bool:
        """Decide whether no span that is taken overlaps this one."""
        return all(end <= taken_start or start >= taken_end for taken_start, taken_end in self.taken)


def write_heldout_selection(corpus: Corpus, out: Path) -> None:
    """Write ``<corpus>.txt``, ``pieces.json`` and ``prompts.json`` into a folder, replacing older ones.

    Args:
        corpus: built corpus; the pieces come from its held-out split.
        out: folder; created if missing, other files in it stay.

    Raises:
        CorpusError: a corpus has too little held-out text for the selection.
    """
    pieces: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    known = _lines(corpus.train.text.tobytes())
    for corpus_id, name in enumerate(corpus.names):
        documents = [d for d in _heldout_documents(corpus, corpus_id) if not _repeats(d.text, known)]
        files[f"{name}.txt"] = _take_pieces(name, documents, pieces)
        _take_prompts(name, documents, prompts)
    for filename, table in (("pieces.json", pieces), ("prompts.json", prompts)):
        files[filename] = (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode()
    for filename, content in files.items():
        write_file(out / filename, content)


def _heldout_documents(corpus: Corpus, corpus_id: int) -> list[_Document]:
    """Return the held-out documents of one corpus, in its order."""
    split = corpus.heldout
    rows = [row for row, owner in enumerate(split.corpus_ids.tolist()) if owner == corpus_id]
    return [_Document(str(split.names[row]), split.document(row).tobytes(), []) for row in rows]


def _lines(text: bytes) -> set[bytes]:
    """Return the lines that are long enough to be original, without indentation."""
    return {line for line in map(bytes.strip, text.split(b"\n")) if len(line) >= _LINE_BYTES}


def _repeats(text: bytes, known: set[bytes]) -> bool:
    """Decide whether much of a held-out document was copied from, or into, a training document."""
    lines = _lines(text)
    return len(lines & known) > _REPEATED_SHARE * len(lines)


def _take_pieces(name: str, documents: list[_Document], table: list[dict[str, Any]]) -> bytes:
    """Take whole lines, about ``PIECE_BYTES`` at a time, from the longest documents in turn."""
    rounds, long = _long_documents(name, documents)
    parts = []
    for number in range(PIECES_PER_CORPUS):
        document = long[number % len(long)]
        start = document.line_at((number // len(long) + 0.25) / rounds)
        end = document.text.rfind(b"\n", start, start + PIECE_BYTES) + 1
        document.taken.append((start, end))
        parts.append(document.text[start:end])
        table.append({"corpus": name, "document": document.name, "offset": start, "length": end - start})
    return b"".join(parts)


def _long_documents(name: str, documents: list[_Document]) -> tuple[int, list[_Document]]:
    """Return the fewest pieces per document that suffice, and the documents with room for so many, longest first."""
    for rounds in range(1, PIECES_PER_CORPUS + 1):
        long = [document for document in documents if len(document.text) >= rounds * _ROOM_BYTES]
        if len(long) * rounds >= PIECES_PER_CORPUS:
            return rounds, sorted(long, key=lambda document: (-len(document.text), document.name))
    needed = PIECES_PER_CORPUS * _ROOM_BYTES
    raise CorpusError(f"{name}: held-out documents are too short, expected one of {needed} bytes or several")


def _take_prompts(name: str, documents: list[_Document], table: list[dict[str, Any]]) -> None:
    """Take prompts from all documents that are not tiny, in turn, spread over each document."""
    usable = [document for document in documents if len(document.text) >= _PROMPT_DOCUMENT]
    rounds = -(-PROMPTS_PER_CORPUS // max(1, len(usable)))
    for number in range(PROMPTS_PER_CORPUS):
        identifier = f"{name}-{number:02d}"
        if not usable:
            raise CorpusError(f"{name}: no held-out document of {_PROMPT_DOCUMENT} bytes for {identifier}")
        document = usable[number % len(usable)]
        start, end = _prompt_span(identifier, document, (number // len(usable) + 0.5) / (rounds + 0.5))
        document.taken.append((start, end))
        row = {"id": identifier, "corpus": name, "document": document.name, "offset": start}
        table.append(row | {"text": document.text[start:end].decode()})


def _prompt_span(identifier: str, document: _Document, fraction: float) -> tuple[int, int]:
    """Return the first free span of prose that starts a line at or after a fraction of the document."""
    shortest, longest = PROMPT_BYTES
    wanted = shortest + hashlib.sha256(identifier.encode()).digest()[0] * (longest - shortest) // 255
    start = document.line_at(fraction)
    while start and start + longest < len(document.text):
        end = _cut(document.text, start, start + wanted)
        span = document.text[start:end]
        visible = span.split()
        letters = sum(char.isalpha() for char in span.decode())
        if span[:1] != b"\n" and letters >= sum(map(len, visible)) / 2 and document.is_free(start, end):
            return start, end
        start = document.text.find(b"\n", start) + 1
    raise CorpusError(f"{document.name}: no place found for prompt {identifier}")


def _cut(text: bytes, start: int, end: int) -> int:
    """Return the last position up to ``end`` where a word starts, or else one at a character boundary."""
    for cut in range(end, start + PROMPT_BYTES[0] - 1, -1):
        if text[cut - 1 : cut].isspace() and not text[cut : cut + 1].isspace():
            return cut
    # A continuation byte of UTF-8 is 10xxxxxx.
    while end > start and text[end] & 0xC0 == 0x80:
        end -= 1
    return end


if __name__ == "__main__":
    write_heldout_selection(load_corpus(Path(sys.argv[1])), Path(sys.argv[2]))
