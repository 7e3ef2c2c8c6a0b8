"""Draws windows from text of any size: a window is read where it lies, and nothing is loaded as a whole.

A file is one document. In a file whose name ends in ``.jsonl`` every line is one: an object with the text in its field
``text``. Files are divided into stretches of equal size, every `HELDOUT_MODULUS`-th of which is held out; a line
belongs to the stretch that it begins in.
"""

from __future__ import annotations

import json
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastblt.models.reading import open_regular
from fastblt.models.training.batches import as_windows, sample_windows
from fastblt.models.training.corpus import HELDOUT_MODULUS, INDEX_FILE, Corpus, Split, load_corpus

LINE_BYTES = 1 << 24
"""Longest line of a ``.jsonl`` file."""
STRETCH_BYTES = 1 << 16
HELDOUT_BYTES = 1 << 22
"""Most held-out text that is read; it is kept in memory."""
_HELDOUT_RESIDUE = HELDOUT_MODULUS // 2
_STRETCHES = 32
"""Text is divided into this many stretches at least."""
_READ = 1 << 14


class TextError(ValueError):
    """Reports text that nothing can be trained on."""


class Text(Protocol):
    """Draws windows of training text."""

    heldout: Split
    """Text that no window contains."""

    def window(self, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw a window from a random document, chosen in proportion to its length.

        Returns:
            ids int64 [1, length] and targets int64 [1, length], as `sample_windows` returns them.
        """
        ...


def open_text(paths: Sequence[Path], window: int) -> Text:
    """Open text for training.

    Args:
        paths: files, folders of files, or one folder that ``fastblt data`` has built.
        window: tokens of a window; less text than 32 of them is too short.

    Raises:
        TextError: there is no text, or it is too short.
        CorpusError: a built corpus is damaged.
        OSError: something cannot be read.
    """
    if len(paths) == 1 and (paths[0] / INDEX_FILE).is_file():
        return CorpusText(load_corpus(paths[0]), paths[0], window)
    return TextFiles(paths, window)


class CorpusText:
    """Draws windows from a built corpus."""

    def __init__(self, corpus: Corpus, path: Path, window: int) -> None:
        _check_size(int(corpus.train.lengths.sum()), [path], window)
        self._train = corpus.train
        self.heldout = corpus.heldout

    def window(self, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Implement `Text.window`."""
        return sample_windows(self._train, 1, length, rng)


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    first_stretch: int
    """Number of its first stretch, counted over all files."""


class TextFiles:
    """Draws windows from files; memory does not grow with their size.

    Args:
        paths: files and folders, which are searched for files.
        window: see `open_text`.

    Raises:
        TextError: see `open_text`.
    """

    def __init__(self, paths: Sequence[Path], window: int) -> None:
        found = [(path, path.stat().st_size) for path in _files(paths)]
        total = sum(size for _, size in found)
        _check_size(total, paths, window)
        self._stretch = min(STRETCH_BYTES, max(1, total // _STRETCHES))
        counts = [-(-size // self._stretch) for _, size in found]
        firsts = [0, *accumulate(counts)]
        self._files = [_File(*each, first) for each, first in zip(found, firsts, strict=False)]
        self._ends = list(accumulate(size for _, size in found))
        self._stretches = firsts[-1]
        self.heldout = self._read_heldout()

    def window(self, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Implement `Text.window`."""
        for _ in range(1_000):
            at = int(rng.integers(0, self._ends[-1]))
            index = bisect_right(self._ends, at)
            file = self._files[index]
            offset = at - (self._ends[index] - file.size)
            piece = self._line_piece(file, offset, length) if _has_lines(file) else self._piece(file, offset, length)
            if piece is not None:
                return as_windows([piece[0]], [piece[1]], length)
        raise TextError(f"{self._files[0].path}: found no text to train on, expected lines with a field text")

    def _is_heldout(self, file: _File, offset: int) -> bool:
        return (file.first_stretch + offset // self._stretch) % HELDOUT_MODULUS == _HELDOUT_RESIDUE

    def _piece(self, file: _File, offset: int, most: int) -> tuple[NDArray[np.uint8], bool] | None:
        """Return at most ``most`` bytes near an offset, and whether the document ends there; None: held out."""
        if self._is_heldout(file, offset):
            return None
        first = offset // self._stretch
        begin, end = first * self._stretch, min(file.size, (first + 1) * self._stretch)
        while begin and offset - begin < most and not self._is_heldout(file, begin - 1):
            begin -= self._stretch
        while end < file.size and end - offset < most and not self._is_heldout(file, end):
            end = min(file.size, end + self._stretch)
        # One byte less than a window leaves room for the end of the document.
        start = max(begin, min(offset, end - most + (end == file.size)))
        piece = _read(file, start, min(most, end - start))
        return piece, start + len(piece) == file.size and len(piece) < most

    def _line_piece(self, file: _File, offset: int, most: int) -> tuple[NDArray[np.uint8], bool] | None:
        """Return a piece of the line that an offset lies in, as `_piece` does; None: held out, or an empty line."""
        begin = _line_start(file, offset)
        if self._is_heldout(file, begin):
            return None
        line = _line(file, begin)
        text = _line_text(file, begin, line)
        if not text:
            return None
        within = min((offset - begin) * len(text) // max(1, len(line)), len(text) + 1 - most)
        start = max(0, within)
        piece = np.frombuffer(text[start : start + most], dtype=np.uint8)
        return piece, start + len(piece) == len(text) and len(piece) < most

    def _read_heldout(self) -> Split:
        """Return held-out text: the stretches, evenly chosen, or the lines that begin in them."""
        numbers = range(_HELDOUT_RESIDUE, self._stretches, HELDOUT_MODULUS)
        step = max(1, -(-len(numbers) * self._stretch // HELDOUT_BYTES))
        documents: list[bytes] = []
        for number in numbers[::step]:
            file = self._files[bisect_right([f.first_stretch for f in self._files], number) - 1]
            begin = (number - file.first_stretch) * self._stretch
            end = min(file.size, begin + self._stretch)
            documents += (
                self._lines(file, begin, end) if _has_lines(file) else [_read(file, begin, end - begin).tobytes()]
            )
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        if not int(lengths.sum()):
            raise TextError(f"{self._files[0].path}: found no text to hold out, expected more of it")
        return Split(
            np.frombuffer(b"".join(documents), dtype=np.uint8),
            np.cumsum(lengths) - lengths,
            lengths,
            np.zeros(len(documents), dtype=np.int64),
            np.array([str(i) for i in range(len(documents))]),
        )

    def _lines(self, file: _File, begin: int, end: int) -> list[bytes]:
        found = []
        at = begin if begin == 0 else _line_start(file, begin - 1)
        while at < end:
            line = _line(file, at)
            if at >= begin:
                found.append(_line_text(file, at, line))
            at += len(line) + 1
        return [text for text in found if text]


def _check_size(total: int, paths: Sequence[Path], window: int) -> None:
    where, least = ", ".join(map(str, paths[:3])), _STRETCHES * window
    if total == 0:
        raise TextError(f"{where}: found no text, expected files with at least {least:,} bytes")
    if total < least:
        raise TextError(f"{where}: found {total:,} bytes of text, expected at least {least:,} ({_STRETCHES} windows)")


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of a list of files and folders, in order; hidden ones in folders are left out."""
    for path in paths:
        if not path.is_dir():
            if not stat.S_ISREG(path.stat().st_mode):
                raise TextError(f"{path}: found a pipe or device, expected a file, which can be read anywhere")
            yield path
            continue
        for parent, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = Path(parent) / name
                if not name.startswith(".") and file.is_file() and file.stat().st_size:
                    yield file


def _has_lines(file: _File) -> bool:
    return file.path.suffix == ".jsonl"


def _read(file: _File, start: int, count: int) -> NDArray[np.uint8]:
    """Return bytes of a file, uint8 [count]."""
    with open_regular(file.path) as stream:
        stream.seek(start)
        data = stream.read(count)
    if len(data) < count:
        raise TextError(f"{file.path}: found fewer bytes than before, expected {file.size:,}")
    return np.frombuffer(data, dtype=np.uint8)


def _line_start(file: _File, offset: int) -> int:
    """Return where the line that a byte belongs to begins; a newline belongs to the line that it ends."""
    end = offset
    while end > 0:
        begin = max(0, end - _READ)
        at = _read(file, begin, end - begin).tobytes().rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        if offset - begin > LINE_BYTES:
            raise _too_long(file, begin)
        end = begin
    return 0


def _line(file: _File, begin: int) -> bytes:
    """Return the line that begins at an offset, without its newline."""
    with open_regular(file.path) as stream:
        stream.seek(begin)
        line = stream.readline(LINE_BYTES + 1)
    if len(line) > LINE_BYTES:
        raise _too_long(file, begin)
    return line.removesuffix(b"\n")


def _too_long(file: _File, begin: int) -> TextError:
    return TextError(
        f"{file.path}: found a line around byte {begin} of more than {LINE_BYTES:,} bytes, expected shorter"
    )


def _line_text(file: _File, begin: int, line: bytes) -> bytes:
    """Return the text of a line of JSON, as UTF-8; an empty line has none."""
    if not line.strip():
        return b""
    try:
        return str.encode(json.loads(line)["text"])  # a TypeError where it is no string
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TextError(
            f"{file.path}: found something else in the line at byte {begin}, expected an object with a string as text"
        ) from None
