"""Cuts windows of true text, and chooses the places in them where blocks and drafts begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastblt.models.tokens import decode, encode
from fastblt.runtime.backends.protocol import Ids

#: The name under which the figures of all texts together are reported.
OVERALL = "overall"


class Text(NamedTuple):
    """Holds a text to score."""

    name: str
    """A held-out corpus, or the file it was read from."""
    data: bytes


def cut_windows(text: Text, count: int, size: int) -> list[Ids]:
    """Cut evenly spaced windows that do not overlap; the same ones at every call.

    Args:
        text: at least one window long.
        count: most windows; fewer where the text has no room for them.
        size: bytes of a window.

    Returns:
        Token ids, each int64 [1 + size], beginning with BOS.

    Raises:
        ValueError: the text is shorter than a window.
    """
    length = len(text.data)
    if length < size:
        raise ValueError(f"{text.name}: found {length} bytes, expected at least one window of {size}")
    fitting = min(count, length // size)
    starts = [i * length // fitting for i in range(fitting)]
    return [encode(text.data[start : start + size]) for start in starts]


def read_texts(paths: Sequence[Path]) -> list[Text]:
    """Read files to score.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is listed twice, or has the name under which all texts are summed up.
    """
    names = [str(path) for path in paths]
    for name in names:
        if names.count(name) > 1 or name == OVERALL:
            raise ValueError(f"data: found {name!r} {names.count(name)} times, expected different files")
    return [Text(name, path.read_bytes()) for name, path in zip(names, paths, strict=True)]


def cut_prompts(texts: Sequence[Text], count: int, size: int) -> list[bytes]:
    """Cut prompts from texts in turn; the same ones at every call, and fewer where the texts have no room.

    Raises:
        ValueError: a text is shorter than a prompt.
    """
    cuts = [cut_windows(text, -(-count // len(texts)), size) for text in texts]
    found = [decode(cut[i]) for i in range(max(map(len, cuts))) for cut in cuts if i < len(cut)]
    return found[:count]


def anchors(size: int, count: int, reserve: int) -> list[int]:
    """Return the lengths, in tokens, of the true prefixes of a window after which blocks and drafts are tried.

    Args:
        size: bytes of the window.
        count: anchors.
        reserve: true bytes that follow every anchor.

    Returns:
        Evenly spaced, the longest first: what is tried after one prefix leaves the caches of shorter ones alone.

    Raises:
        ValueError: the window has no room for them.
    """
    room = size - reserve
    if room < 2 * count:  # two bytes apart, so that every prefix has at least two bytes
        expected = 2 * count + reserve
        raise ValueError(f"window: found {size} bytes, expected at least {expected} for {count} anchors")
    return [1 + i * room // count for i in range(count, 0, -1)]
