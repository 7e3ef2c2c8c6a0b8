"""Choosing the next token from decoder rows: greedy, or temperature and top-p with a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backend import DecoderRows
from fastblt.runtime.methods.method import Choose


class SamplingError(ValueError):
    """Sampling parameters out of range."""


def greedy(rows: DecoderRows, index: int) -> int:
    """The most likely token after row ``index``; the graph has already found it."""
    return int(rows.best[index])


def nucleus(logits: NDArray[np.float32], temperature: float, top_p: float) -> NDArray[np.float64]:
    """Probabilities after temperature and top-p.

    The smallest set of most likely tokens whose probability reaches ``top_p`` is kept and normalised.

    Args:
        logits: float32 [vocab].
        temperature: > 0.
        top_p: in (0, 1].

    Returns:
        float64 [vocab], sums to 1.
    """
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf of every token but the best
        p: NDArray[np.float64] = np.exp((wide - wide.max()) / temperature)
    p /= p.sum()
    if top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
        p /= p.sum()
    return p


def make_choose(temperature: float, top_p: float, seed: int | None) -> Choose:
    """A chooser; temperature 0 is greedy.

    Raises:
        SamplingError: temperature < 0 or top_p outside (0, 1].
    """
    if not temperature >= 0.0:
        raise SamplingError(f"temperature: found {temperature}, expected a number >= 0 (0 is greedy)")
    if not 0.0 < top_p <= 1.0:
        raise SamplingError(f"top_p: found {top_p}, expected a number in (0, 1]")
    if temperature == 0.0:
        return greedy
    rng = np.random.default_rng(seed)

    def sample(rows: DecoderRows, index: int) -> int:
        p = nucleus(rows.logits[index], temperature, top_p)
        return int(rng.choice(p.shape[0], p=p))

    return sample
