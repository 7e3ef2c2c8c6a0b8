"""Computes rolling n-gram hashes: the row of each table that a token's n-grams select.

Written in plain array arithmetic that numpy and torch share (int64 that wraps, modulo of the sign of the
divisor), so that training and the torch-free runtime use one definition.
"""

from __future__ import annotations

from typing import Any

from fastblt.models.config import HASH_PRIMES, HashConfig


def _wrap(value: int) -> int:
    """Return a Python integer reduced to the signed 64-bit range."""
    return (value + 2**63) % 2**64 - 2**63


def hash_powers(config: HashConfig) -> list[list[int]]:
    """Return ``powers[f][m]`` = prime_f ** m in wrapping int64, for m below the longest n-gram."""
    return [[_wrap(p**m) for m in range(config.context)] for p in HASH_PRIMES[: config.functions]]


def hash_rows(ids: Any, config: HashConfig) -> list[Any]:
    """Return row indices into the fused table (all tables stacked, table t at offset ``t * rows``).

    The oldest token of an n-gram has exponent 0, the current one exponent n-1.

    Args:
        ids: int64 numpy array or torch tensor, shape [..., context - 1 + n]: the ``context - 1`` tokens before
            the n current ones (0 where the sequence has not begun), then those.
        config: tables.

    Returns:
        One int64 array of shape [..., n] for each table, in table order.
    """
    count = ids.shape[-1] - (config.context - 1)
    end = ids.shape[-1]
    rows: list[Any] = []
    for powers in hash_powers(config):
        for size in config.sizes:
            total = ids[..., end - count - size + 1 : end - size + 1] * powers[0]
            for m in range(1, size):
                first = end - count - size + 1 + m
                total = total + ids[..., first : first + count] * powers[m]
            rows.append(total % config.rows + len(rows) * config.rows)
    return rows
