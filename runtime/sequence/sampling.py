"""Choosing tokens from decoder rows: greedily, or with temperature and top-p; and judging drafts.

Judging is lossless: whatever was drafted, the bytes that come out are distributed as if they had been sampled one
by one. A drafted byte x stands before the model's distribution p.

* It was drawn from a known distribution q (Leviathan et al., 2023; Chen et al., 2023): it is kept with probability
  min(1, p(x) / q(x)), else replaced by a sample of the normalised positive part of p - q.
* Nothing is known of how it came about (q is None): a byte y is sampled from p, and x is kept if it is y. What comes
  out is y, so this is right for every draft, but fewer drafts are kept.

Greedy decoding is the second case with p a single byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.protocol import DecoderRows

Distribution = NDArray[np.float64]


class SamplingError(ValueError):
    """Sampling parameters out of range."""


class Draft(NamedTuple):
    """Drafted tokens, in the order of the text."""

    tokens: Sequence[int]
    proposals: Sequence[Distribution | None] = ()
    """What each token was drawn from, *given the drafted tokens before it*; None or missing where that is unknown."""

    def proposal(self, index: int) -> Distribution | None:
        """What a token was drawn from."""
        return self.proposals[index] if index < len(self.proposals) else None


class Sampler:
    """Chooses tokens; temperature 0 is greedy.

    Args:
        temperature: >= 0.
        top_p: nucleus, in (0, 1].
        seed: of the choices; None: a random one.

    Raises:
        SamplingError: temperature < 0 or top_p outside (0, 1].
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not temperature >= 0.0:
            raise SamplingError(f"temperature: found {temperature}, expected a number >= 0 (0 is greedy)")
        if not 0.0 < top_p <= 1.0:
            raise SamplingError(f"top_p: found {top_p}, expected a number in (0, 1]")
        self.temperature = temperature
        self.top_p = top_p
        self.greedy = temperature == 0.0
        self._rng = np.random.default_rng(seed)

    def distribution(self, rows: DecoderRows, index: int) -> Distribution:
        """What a row's token is sampled from, float64 [vocab]; not for greedy decoding."""
        return nucleus(rows.logits[index], self.temperature, self.top_p)

    def choose(self, rows: DecoderRows, index: int) -> int:
        """The token that a row gives: the most likely one (the graph has found it already), or a sample."""
        return int(rows.best[index]) if self.greedy else self._sample(self.distribution(rows, index))

    def draw(self, rows: DecoderRows, index: int) -> tuple[int, Distribution | None]:
        """A token for a draft, and what it was drawn from (greedy: None)."""
        if self.greedy:
            return int(rows.best[index]), None
        q = self.distribution(rows, index)
        return self._sample(q), q

    def verify(self, draft: Draft, kept: int, rows: DecoderRows) -> tuple[int, int | None]:
        """Go on verifying a draft.

        Args:
            draft: n tokens.
            kept: tokens of it that earlier calls have kept.
            rows: of the model, at most n + 1 - kept; row i is about draft token kept + i, row n about the token
                after the draft.

        Returns:
            How many tokens are kept now, and the token after them: the correction, or a free one after a whole
            draft; None where the rows end before that is decided.
        """
        size = len(draft.tokens)
        for row in range(len(rows.best)):
            if kept == size:
                return kept, self.choose(rows, row)
            token = draft.tokens[kept]
            found = self._verify(token, draft.proposal(kept), rows, row)
            if found != token:
                return kept, found
            kept += 1
        return kept, None

    def _verify(self, token: int, q: Distribution | None, rows: DecoderRows, index: int) -> int:
        if q is None:
            return self.choose(rows, index)
        p = self.distribution(rows, index)
        if self._rng.random() * q[token] < p[token]:
            return token
        # The token itself is no candidate: it is rejected only where p < q.
        rest = np.maximum(p - q, 0.0)
        return self._sample(rest if rest.any() else p)  # equal but for rounding

    def _sample(self, weights: Distribution) -> int:
        total = np.cumsum(weights)
        at = min(self._rng.random() * total[-1], np.nextafter(total[-1], 0.0))
        return int(np.searchsorted(total, at, side="right"))


def nucleus(logits: NDArray[np.float32], temperature: float, top_p: float) -> Distribution:
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
        p: Distribution = np.exp((wide - wide.max()) / temperature)
    p /= p.sum()
    if top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
        p /= p.sum()
    return p
