"""Scales random weights before training."""

from __future__ import annotations

from collections.abc import Sequence


def initial_std(name: str, shape: Sequence[int]) -> float:
    """Return the standard deviation of a weight's normal distribution: fan_in ** -0.5, less for embeddings.

    Args:
        name: of the tensor, in a checkpoint.
        shape: [out, in], or [rows, width] of an embedding table.
    """
    scale = 0.5 if "embeddings" in name else 1.0
    if "hash_embeddings" in name:
        scale = 0.1
    return scale * float(shape[1]) ** -0.5
