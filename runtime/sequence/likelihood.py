"""Scores given text: the probability of each of its tokens, given everything before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.protocol import MAX_ROWS, DecoderRows, Ids
from fastblt.runtime.sequence.sampling import log_probabilities
from fastblt.runtime.sequence.session import Session


@dataclass(frozen=True, eq=False)
class Score:
    """Holds how likely a model finds a continuation."""

    data: bytes
    """The continuation, n bytes."""
    logprobs: NDArray[np.float64]
    """float64 [n]: natural logarithm of the probability of each byte given everything before it."""
    greedy: NDArray[np.bool_]
    """bool [n]: whether no token is more likely there; where all are True, greedy text begins with the continuation."""

    @property
    def total(self) -> float:
        """Return the natural logarithm of the probability of the whole continuation; 0 for an empty one."""
        return float(self.logprobs.sum())

    @property
    def bits_per_byte(self) -> float | None:
        """Return the code length per byte, in bits; None for an empty continuation."""
        return -self.total / math.log(2) / len(self.data) if self.data else None


def score_tokens(
    session: Session, ids: Ids, first: int = 1, on_rows: Callable[[DecoderRows], None] = lambda rows: None
) -> NDArray[np.float64]:
    """Score a text, teacher-forced, in pieces of at most `MAX_ROWS` tokens; its last token is not read.

    Args:
        session: whose tokens, the last of which is not scored, are the first of ``ids``, before ``first``.
        ids: int64 [n], BOS first.
        first: position of the first token whose probability is wanted, >= 1.
        on_rows: given the decoder's rows from position ``first - 1`` on, piece by piece; each piece is overwritten by
            the next call.

    Returns:
        float64 [n - first]: natural logarithm of the probability of each token, as in `log_probabilities`.

    Raises:
        CapacityError: the text is longer than the session may become.
    """
    if first > 1:
        session.append(ids[session.length : first - 1])
        session.score()
    found = [np.empty(0)]
    while session.scored < len(ids) - 1:
        start = session.scored
        end = min(start + MAX_ROWS, len(ids) - 1)
        session.append(ids[session.length : end])
        rows = session.score()
        found.append(log_probabilities(rows.logits, ids[start + 1 : end + 1]))
        on_rows(rows)
    return np.concatenate(found)
