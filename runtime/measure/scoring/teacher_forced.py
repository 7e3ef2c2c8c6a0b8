"""Scores a window of true text: code length, and what is drafted or denoised after its prefixes.

Every draft and every block begins after *true* text, so that looping text cannot flatter the rates. The rounds are
those of the methods themselves: what is scored is what generation runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.scoring.plan import ScoringPlan
from fastblt.runtime.measure.scoring.windows import anchors
from fastblt.runtime.methods import Method, Round, parse_method, rounds_of
from fastblt.runtime.sequence.likelihood import score_tokens
from fastblt.runtime.sequence.requests import denoise, score_with_block
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Latent, Session


class DraftOutcome(NamedTuple):
    """Counts one draft after true text."""

    drafted: int
    accepted: int
    """Bytes up to the first that differs from the model's own greedy ones."""


class MaskedOutcome(NamedTuple):
    """Counts one decoder call over a partly hidden block of true text."""

    hidden: int
    right: int
    """Hidden bytes whose most likely token is the true one."""


class BlockOutcome(NamedTuple):
    """Compares a denoised block with the greedy autoregressive bytes after the same true text."""

    size: int
    equal: int
    """Bytes that are equal, position by position."""
    common_prefix: int
    """Bytes before the first difference."""


MaskKey = tuple[float, Latent]


@dataclass
class WindowScore:
    """Holds the outcomes of one window, in the order of its anchors."""

    bytes: int
    """Bytes scored, i.e. all of the window."""
    nats: float
    """Their code length."""
    patched_bytes: int
    """Bytes in closed patches, BOS and its own patch left out."""
    patches: int
    """Closed patches, without that of BOS."""
    drafts: dict[str, list[DraftOutcome]] = field(default_factory=dict)
    masked: dict[MaskKey, list[MaskedOutcome]] = field(default_factory=dict)
    blocks: dict[str, list[BlockOutcome]] = field(default_factory=dict)


def score_window(session: Session, ids: Ids, plan: ScoringPlan, index: int = 0) -> WindowScore:
    """Score one window.

    Args:
        session: that holds nothing but BOS, with room for the window.
        ids: int64 [1 + bytes], beginning with BOS.
        plan: what to try after its prefixes.
        index: of the window; seeds which bytes are hidden, together with the plan's seed.
    """
    nats = -float(score_tokens(session, ids).sum())
    ends = session.patch_ends
    score = WindowScore(len(ids) - 1, nats, ends[-1] - 1, len(ends) - 1)
    random = np.random.default_rng([plan.seed, index])
    for anchor in anchors(len(ids) - 1, plan.anchors, plan.longest_block):
        draws = random.random(plan.mask_size)
        _try_drafts(score, session, ids[:anchor], plan)
        _try_masks(score, session, ids[: anchor + plan.mask_size], draws, plan)
        _try_blocks(score, session, ids[:anchor], plan)
    return score


def _go_to(session: Session, prefix: Ids) -> None:
    """Go back to a prefix of what was scored; only its last token is not scored then."""
    session.rewind(len(prefix) - 1)
    session.append(prefix[-1:])


def _try_drafts(score: WindowScore, session: Session, prefix: Ids, plan: ScoringPlan) -> None:
    for method in plan.drafts:
        found = draft_round(session, prefix, method)
        score.drafts.setdefault(method.name, []).append(DraftOutcome(found.drafted, found.accepted))


def draft_round(session: Session, prefix: Ids, method: Method) -> Round:
    """Return the first round after a true prefix in which a method drafts.

    A method's very first round samples one byte: it starts after the prefix without its last byte, and what it
    samples is then replaced by that byte.
    """
    _go_to(session, prefix[:-1])
    rounds = rounds_of(method, session, Sampler())
    next(rounds)
    _go_to(session, prefix)
    return next(rounds)


def _try_masks(score: WindowScore, session: Session, ids: Ids, draws: NDArray[np.float64], plan: ScoringPlan) -> None:
    """Hide bytes of the true block at the end of ``ids``; a byte hidden at one rate is hidden at every higher one."""
    size = len(draws)
    if not size:
        return
    true = ids[-size:]
    for latent in plan.latents:
        _go_to(session, ids[:-size])
        session.run(score_with_block(np.full(size, MASK_ID, dtype=np.int64), latent))
        for rate in plan.mask_rates:
            hidden = draws < rate
            right = 0
            if hidden.any():
                rows = session.run(denoise(np.where(hidden, MASK_ID, true)))
                right = int((rows.best == true)[hidden].sum())
            score.masked.setdefault((rate, latent), []).append(MaskedOutcome(int(hidden.sum()), right))


def _try_blocks(score: WindowScore, session: Session, prefix: Ids, plan: ScoringPlan) -> None:
    if not plan.blocks:
        return
    found = {method.name: first_round(session, prefix, method) for method in plan.blocks}
    greedy = greedy_tokens(session, prefix, max(map(len, found.values())))
    for name, block in found.items():
        own = greedy[: len(block)]
        outcome = BlockOutcome(len(block), int((block == own).sum()), common_prefix(block, own))
        score.blocks.setdefault(name, []).append(outcome)


def first_round(session: Session, prefix: Ids, method: Method) -> Ids:
    """Return the tokens, int64 [n], of a method's first round after a prefix; of BLT-D, a block."""
    _go_to(session, prefix)
    return np.array(next(rounds_of(method, session, Sampler())).tokens, dtype=np.int64)


def greedy_tokens(session: Session, prefix: Ids, count: int) -> Ids:
    """Return the model's own greedy continuation, int64 [count]."""
    _go_to(session, prefix)
    rounds = rounds_of(parse_method("ar"), session, Sampler())
    return np.array([next(rounds).tokens[0] for _ in range(count)], dtype=np.int64)
