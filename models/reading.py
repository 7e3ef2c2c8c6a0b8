"""Opens and parses small files that somebody else may have written: regular files only, of bounded size."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from io import BufferedReader
from pathlib import Path
from typing import Any

from fastblt.models.atomic_partial import named_errors
from fastblt.models.limits import JSON_BYTES
from fastblt.models.shown import shown


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; a pipe or a device in its place would block, or never end.

    Raises:
        OSError: it cannot be opened, or is something else than a file; the error names it.
    """
    with named_errors(path, path):
        return _open_regular(path)


def _open_regular(path: Path) -> BufferedReader:
    # A FIFO without a writer would block before it could be recognized; Windows has no such flag, and no FIFOs.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            raise OSError(None, f"found {_what(kind)}, expected a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, most: int) -> str:
    """Return the text of a UTF-8 file.

    Args:
        path: of the file.
        most: largest size, in bytes.

    Raises:
        OSError: it cannot be read, or is something else than a file.
        ValueError: it is larger, or not UTF-8.
    """
    with open_regular(path) as file:
        # Python makes room for what is asked for before it reads: no more than there is.
        raw = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    if len(raw) > most:
        raise ValueError(f"found {os.stat(path).st_size} bytes, expected at most {most}")
    return raw.decode("utf-8")


def check_regular(path: Path) -> None:
    """Check that a library can open a file: a pipe would make it wait for somebody who writes.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
    """
    open_regular(path).close()


def read_json(path: Path, error: type[Exception], expected: str, *, constants: bool = False) -> Any:
    """Return the content of a JSON file, in plain types.

    Integers have at most 4300 digits (Python's own limit), numbers beyond the range of floats are infinite, and an
    object that has a field twice is refused, because readers differ in which of the two they take.

    Args:
        path: of the file.
        error: class of the error to raise.
        expected: what the file should be, for the message: "a bundle's manifest.json".
        constants: whether NaN and infinities pass, which JSON does not have but other software writes into fields that
            are not ours; the caller checks those that it reads.

    Raises:
        error: it is missing, is no regular file, is larger than `JSON_BYTES`, or is not JSON; the message names it.
    """
    try:
        text = read_text(path, JSON_BYTES)
        return json.loads(text, parse_constant=float if constants else _refuse, object_pairs_hook=_unique)
    except OSError as found:
        raise error(f"{path}: cannot be read ({found.strerror}), expected {expected}") from found
    except (ValueError, RecursionError) as found:  # the latter: thousands of brackets
        raise error(f"{path}: not JSON ({found}), expected {expected}") from found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"found {shown(twice)} twice in an object, expected each field once")
    return fields


def _refuse(constant: str) -> float:
    raise ValueError(f"found {constant}, expected a finite number")


def _what(kind: int) -> str:
    if stat.S_ISDIR(kind):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(kind) else "a device or socket"
