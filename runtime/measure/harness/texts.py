"""Cuts texts that exceed the room for one, in the way that lm-evaluation-harness expects: the end is what counts."""

from __future__ import annotations

from collections.abc import Iterator

#: Bytes of a UTF-8 character after its first.
_LONGEST_REST = 3


def fit_context(context: bytes, room: int) -> bytes:
    """Return the end of a context, at most ``room`` bytes; it does not begin inside a UTF-8 character."""
    if len(context) <= room:
        return context
    end = context[len(context) - room :]
    rest = 0
    while rest < min(_LONGEST_REST, len(end)) and end[rest] & 0xC0 == 0x80:
        rest += 1
    return end[rest:]


def rolling_windows(data: bytes, room: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the windows in which a whole document is scored, as pairs of context and bytes to predict.

    Every byte is predicted exactly once. The first window begins the document; each later one predicts as many bytes
    as fit after one byte of context, and the last has all the context that fits.

    Args:
        data: the document.
        room: most bytes of context and predicted bytes together, >= 2.
    """
    done = 0
    while done < len(data):
        end = min(len(data), done + room - (done > 0))
        yield data[max(0, end - room) : done], data[done:end]
        done = end
