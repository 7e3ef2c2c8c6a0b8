"""Compares two texts, or two sequences of tokens, from their beginnings."""

from __future__ import annotations

from fastblt.runtime.backends.protocol import Ids


def common_prefix(a: Ids | bytes, b: Ids | bytes) -> int:
    """Return how many leading items of two sequences are equal."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
