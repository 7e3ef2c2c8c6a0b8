"""Maps bytes to token ids: four special ids, then one id per byte value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BOE_ID = 0
"""Padding of n-gram windows that reach before the sequence; never produced at inference."""
BOS_ID = 1
"""First token of every sequence; it is patch 0 by itself."""
EOS_ID = 2
"""End of a document."""
BYTE_OFFSET = 4
"""Byte b has id b + 4 (id 3, a BPE delimiter, is unused)."""
VOCAB_SIZE = 256 + BYTE_OFFSET
"""Ids a model can output."""
MASK_ID = VOCAB_SIZE
"""Row of [MASK] in the embedding table of a BLT-D decoder; never an output."""
SPACE_LIKE: tuple[bool, ...] = (True,) * BYTE_OFFSET + tuple(
    not (chr(byte).isalnum() if byte < 128 else byte < 0xC0) for byte in range(256)
)
"""Whether each id is space-like: neither a Latin letter, a digit nor a UTF-8 continuation byte."""


def utf8(text: str, name: str) -> bytes:
    """Return text as UTF-8.

    Args:
        text: to encode.
        name: what it is, for the message.

    Raises:
        ValueError: it has half of a surrogate pair, which UTF-8 cannot express.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: found {text[error.start]!r} at {error.start}, half of a surrogate pair, expected UTF-8"
        ) from None


def encode(data: bytes | str, *, bos: bool = True) -> NDArray[np.int64]:
    """Return the token ids of a prompt.

    Args:
        data: bytes, or text that is encoded as UTF-8. Any byte string is valid.
        bos: begin with `BOS_ID`.

    Returns:
        int64 ids, shape [len(data) + bos].

    Raises:
        ValueError: the text has half of a surrogate pair, which UTF-8 cannot express.
    """
    raw = utf8(data, "text") if isinstance(data, str) else data
    ids = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) + BYTE_OFFSET
    return np.concatenate([np.array([BOS_ID], dtype=np.int64), ids]) if bos else ids


def decode(ids: NDArray[np.int64] | list[int]) -> bytes:
    """Return the bytes of token ids; special ids (< 4) are dropped."""
    values = np.asarray(ids, dtype=np.int64)
    return (values[values >= BYTE_OFFSET] - BYTE_OFFSET).astype(np.uint8).tobytes()
