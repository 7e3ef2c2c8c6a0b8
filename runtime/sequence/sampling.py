"""Chooses tokens from decoder rows, greedily or at random, and verifies drafts.

What a row's token is sampled from is made of its logits in this order, which is that of transformers
(``GenerationMixin._get_logits_processor``; llama.cpp's default chain applies the temperature last):

1. a bias is added to the logits; -inf bans a token; a grammar bans all tokens that may not follow;
2. the temperature divides them;
3. top-k keeps the k most likely tokens (Fan et al., arXiv 1805.04833);
4. top-p keeps the smallest set of most likely tokens whose probability reaches p (Holtzman et al., arXiv 1904.09751);
5. min-p keeps the tokens at least ``min_p`` times as likely as the most likely one (Nguyen et al., arXiv 2407.01082).

What is kept is normalized after each step. Greedy decoding takes the greatest biased logit; steps 2 to 5 always keep
that token.

Verification is lossless: whatever was drafted, the tokens that come out are distributed as if they had been sampled
one by one. Let p be the distribution of the model's row, after the steps above, where the token x was drafted.

* x was drawn from a known distribution q (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): it is
  kept with probability min(1, p(x) / q(x)), else replaced by a sample of the normalized positive part of p - q.
* Nothing is known of x's origin (q is None): a token y is sampled from p, and x is kept if it equals y. What comes out
  is y, so this is right for every draft, but fewer drafts are kept.

Greedy decoding is the second case, with all of p on a single token.

With a grammar, p and q are both masked by what may follow the same tokens, so the text is distributed like that of a
model whose every row is masked. A token that the grammar forces has p = q = 1, and is kept without a look at its row.
The sampler walks the grammar (`Sampler.advance`) along what is kept, and along drafts, from where it is rewound.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.models.shown import shown
from fastblt.runtime.backends.protocol import DecoderRows, Floats, Ids
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.matcher import Matcher

Distribution = NDArray[np.float64]


class SamplingError(ValueError):
    """Reports a parameter of sampling that is out of range, or logits that cannot be sampled from."""


class Draft(NamedTuple):
    """Drafted tokens, in the order of the text."""

    tokens: Sequence[int]
    proposals: Sequence[Distribution | None] = ()
    """What each token was drawn from, *given the drafted tokens before it*; None or missing where that is unknown."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token in the row that decided it; empty where it is not wanted or not known."""
    forced: int = 0
    """How many of the last tokens a grammar forces, given those before them."""

    @property
    def chosen(self) -> int:
        """Return how many tokens a drafter has chosen: the first ones."""
        return len(self.tokens) - self.forced

    def proposal(self, index: int) -> Distribution | None:
        """Return what a token was drawn from, float64 [vocab], or None where that is unknown."""
        return self.proposals[index] if index < len(self.proposals) else None


class Sampler:
    """Chooses the tokens of one generation; its random state moves on with every choice.

    Args:
        temperature: >= 0; 0 is greedy.
        top_p: probability of the nucleus, in (0, 1]; 1 keeps every token.
        seed: of the choices, >= 0; None: a random one.
        top_k: most tokens to choose from, >= 0; 0 keeps every token. Of equally likely ones those with the lowest ids
            are kept.
        min_p: least probability relative to the most likely token's, in [0, 1]; 0 keeps every token.
        bias: float64 [vocab], added to the logits of every row; None: nothing.
        logprobs: whether methods are to report log-probabilities of what they choose.
        matcher: walks the grammar of the text; None: every token may follow.

    Raises:
        SamplingError: a parameter is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        top_k: int = 0,
        min_p: float = 0.0,
        bias: Distribution | None = None,
        logprobs: bool = False,
        matcher: Matcher | None = None,
    ) -> None:
        check_sampling(temperature, top_p, top_k, min_p, seed)
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_p = min_p
        self.logprobs = logprobs
        self.greedy = temperature == 0.0
        self._bias = bias if bias is not None and bias.any() else None
        self.matcher = matcher
        self._rng = np.random.default_rng(seed)

    @property
    def takes_best(self) -> bool:
        """Return whether every choice is the row's ``best``, so that a backend can draft without asking."""
        return self.greedy and self._bias is None and self.matcher is None

    def advance(self, token: int) -> bool:
        """Walk the grammar along a token; return False, and do nothing, where it may not follow."""
        return self.matcher is None or self.matcher.advance(token)

    def can_draw(self) -> bool:
        """Return whether something may follow where the grammar's walk has arrived, and is found within the bounds.

        A draft ends where this is False; whether the text gets there is for verification to decide.
        """
        if self.matcher is None:
            return True
        try:
            self.matcher.mask()
        except GrammarError:
            return False
        return not self._only_banned()

    def _only_banned(self) -> bool:
        """Return whether all that may follow where the grammar's walk has arrived has a bias of -inf."""
        if self.matcher is None or self._bias is None:
            return False
        return bool(np.isneginf(self._bias[self.matcher.mask()]).all())

    def forced(self, most: int) -> list[int]:
        """Return up to ``most`` tokens that the grammar forces to follow; none of them has a bias of -inf."""
        tokens = self.matcher.forced(most) if self.matcher is not None else []
        if self._bias is None:
            return tokens
        banned = np.flatnonzero(np.isneginf(self._bias[tokens]))
        return tokens[: banned[0]] if len(banned) else tokens

    def distribution(self, rows: DecoderRows, index: int, *, masked: bool = True) -> Distribution:
        """Return what a row's token is sampled from, float64 [vocab]; not for greedy decoding.

        Args:
            rows: of the decoder.
            index: of the row.
            masked: whether the row is about the token where the grammar's walk has arrived; False: leave it aside.
        """
        logits = self._allowed(rows.logits[index], masked)
        return probabilities(logits, self.temperature, self.top_p, self.top_k, self.min_p)

    def _allowed(self, logits: Floats, masked: bool = True) -> NDArray[np.floating]:
        """Return the logits [vocab] after bias and grammar."""
        wide = logits if self._bias is None else logits + self._bias
        if self.matcher is None or not masked:
            return wide
        wide = np.where(self.matcher.mask(), wide, -np.inf)
        if np.isneginf(wide.max()):
            raise GrammarError("grammar: found a bias of -inf on every byte that may follow, expected one without")
        return wide

    def log_probabilities(self, logits: Floats, tokens: Sequence[int]) -> tuple[float, ...]:
        """Return the log-probabilities of tokens, as the function of this name does; () where they are not wanted."""
        return tuple(log_probabilities(logits, tokens).tolist()) if self.logprobs else ()

    def choose(self, rows: DecoderRows, index: int, *, masked: bool = True) -> int:
        """Choose a row's token: the most likely one (without a bias the graph has found it already), or a sample."""
        if self.greedy:
            best = int(rows.best[index])
            if self._bias is None and (self.matcher is None or not masked or self.matcher.mask()[best]):
                return best
            return int(self._allowed(rows.logits[index], masked).argmax())
        return self._sample(self.distribution(rows, index, masked=masked))

    def draw(self, rows: DecoderRows, index: int, *, masked: bool = True) -> tuple[int, Distribution | None]:
        """Choose a token for a draft, and return what it was drawn from too (greedy: None)."""
        if self.greedy:
            return self.choose(rows, index, masked=masked), None
        q = self.distribution(rows, index, masked=masked)
        return self._sample(q), q

    def verify(self, draft: Draft, kept: int, rows: DecoderRows) -> tuple[int, int | None]:
        """Continue to verify a draft; the grammar is walked along all that is kept, and the token after it.

        Args:
            draft: n tokens.
            kept: how many of them earlier calls have kept.
            rows: of the model, at most n + 1 - kept; row i is about draft token kept + i, row n about the token
                after the draft.

        Returns:
            How many tokens are kept now, and the token after them: the correction, or a free one after a whole
            draft; None where the rows end before that is decided. Where only banned tokens may follow, the token after
            those that are kept is the draft's own: the text may end with it, and only the next round may not.
        """
        size = len(draft.tokens)
        for row in range(len(rows.best)):
            if kept and not draft.chosen <= kept < size and self._only_banned():
                return kept - 1, draft.tokens[kept - 1]
            if kept == size:
                found = self.choose(rows, row)
                self.advance(found)
                return kept, found
            token = draft.tokens[kept]
            forced = kept >= draft.chosen
            found = token if forced else self._verify(token, draft.proposal(kept), rows, row)
            self.advance(found)
            if found != token:
                return kept, found
            kept += 1
        return kept, None

    def _verify(self, token: int, q: Distribution | None, rows: DecoderRows, index: int) -> int:
        """Return the token that comes out where ``token`` was drafted from ``q``."""
        if q is None:
            return self.choose(rows, index)
        p = self.distribution(rows, index)
        if self._rng.random() * q[token] < p[token]:
            return token
        # The token itself is no candidate: it is rejected only where p < q.
        rest = np.maximum(p - q, 0.0)
        return self._sample(rest if rest.any() else p)  # equal but for rounding

    def _sample(self, weights: Distribution) -> int:
        """Return a random token; weights float64 [vocab] >= 0 need not be normalized."""
        total = np.cumsum(weights)
        at = min(self._rng.random() * total[-1], np.nextafter(total[-1], 0.0))
        return int(np.searchsorted(total, at, side="right"))


def check_sampling(temperature: float, top_p: float, top_k: int, min_p: float, seed: int | None) -> None:
    """Check the parameters of a `Sampler`.

    Raises:
        SamplingError: one of them is out of range, or not a number.
    """
    if not (is_number(temperature) and 0.0 <= temperature < math.inf):
        raise SamplingError(f"temperature: found {shown(temperature)}, expected a number >= 0 (0 is greedy)")
    if not (is_number(top_p) and 0.0 < top_p <= 1.0):
        raise SamplingError(f"top_p: found {shown(top_p)}, expected a number in (0, 1]")
    if not _is_count(top_k):
        raise SamplingError(f"top_k: found {shown(top_k)}, expected an integer >= 0 (0 keeps every token)")
    if not (is_number(min_p) and 0.0 <= min_p <= 1.0):
        raise SamplingError(f"min_p: found {shown(min_p)}, expected a number in [0, 1]")
    if seed is not None and not _is_count(seed):
        raise SamplingError(f"seed: found {shown(seed)}, expected an integer >= 0, or None for a random one")


def log_probabilities(logits: Floats, tokens: Sequence[int] | Ids) -> NDArray[np.float64]:
    """Return the natural logarithm of tokens' probabilities under the model's own distribution.

    That is the softmax of the logits, before bias, temperature and truncation.

    Args:
        logits: float32 [n, vocab], the decoder's rows.
        tokens: n, one per row.

    Returns:
        float64 [n].
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = wide[np.arange(len(tokens)), tokens] - np.log(np.exp(wide).sum(axis=1))
    return found


def probabilities(
    logits: NDArray[np.floating], temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Distribution:
    """Return the distribution that a token is sampled from; the module's docstring has the steps.

    Args:
        logits: [vocab], at least one of them finite.
        temperature: > 0.
        top_p: in (0, 1]; 1 keeps every token.
        top_k: >= 0; 0 keeps every token.
        min_p: in [0, 1]; 0 keeps every token.

    Returns:
        float64 [vocab], sums to 1.

    Raises:
        SamplingError: the greatest logit is NaN or infinite.
    """
    wide = logits.astype(np.float64)
    best = wide.max()
    if not math.isfinite(best):
        raise SamplingError(f"logits: found {best} as the greatest one, expected a finite number")
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf of every token but the best
        p: Distribution = np.exp((wide - best) / temperature)
    p /= p.sum()
    if 0 < top_k < len(p) or top_p < 1.0:
        _keep_most_likely(p, top_p, top_k)
    if min_p > 0.0:
        p[p < min_p * p.max()] = 0.0
        p /= p.sum()
    return p


def _keep_most_likely(p: Distribution, top_p: float, top_k: int) -> None:
    """Apply top-k, then top-p, in place."""
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0.0
        p /= p.sum()
    if top_p < 1.0:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
        p /= p.sum()


def is_number(value: object) -> bool:
    """Return whether a value is a real number that a float can hold; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def _is_count(value: object) -> bool:
    """Return whether a value is an integer >= 0; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0
