"""Verification of drafts: one pass of the whole model over them, then keep what agrees (paper, Algorithm 2).

A round costs *one* encoder and global call. The paper makes two: one to encode the prefix before it drafts, one to
verify. But verification has computed the latents of all complete patches of what it accepted, and everything is
causal, so they stay valid for the next draft.
"""

from __future__ import annotations

from fastblt.runtime.backend import DecoderRows
from fastblt.runtime.methods.method import Origin, Round
from fastblt.runtime.sampling import Draft, Sampler
from fastblt.runtime.session import Session


def verify(session: Session, sampler: Sampler, draft: Draft, before: DecoderRows | None = None) -> Round:
    """Append a draft, score it, and keep what the model would have said itself.

    Args:
        session: its last token is the only one that is not scored, or, with ``before``, is scored too.
        sampler: judges.
        draft: at least one token.
        before: a copy of the last token's row, where it has been scored already.

    Returns:
        The tokens that were kept and the one after them, which is appended and not scored.
    """
    start, size = session.length, len(draft.tokens)
    session.append(draft.tokens)
    rows = session.score()
    if before is not None:
        rows = before.followed_by(rows)
    accepted, following = sampler.judge(draft, rows)
    session.rewind(start + accepted)
    session.append([following])
    origins: list[Origin] = ["accepted"] * accepted
    origins.append("free" if accepted == size else "corrected")
    tokens = tuple(draft.tokens)
    return Round((*tokens[:accepted], following), tuple(origins), tokens[accepted:], size)
