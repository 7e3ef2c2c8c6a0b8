"""Verifies drafts: one pass of the whole model over them, then keep what agrees (arXiv 2605.08044, Algorithm 2).

A round costs *at most one* encoder and global call. The paper makes two: one to encode the prefix before it drafts,
one to verify. But verification has computed the latents of all complete patches of what it accepted, and everything
is causal, so they stay valid for the next draft.

Often a round costs none: the rows before the first patch that closes in the draft need no new latent. They can be
verified first (``in_parts``), and if the draft fails there, encoder and global transformer are not run at all. This
pays for diffusion drafts. BLT-S drafts never fail there, because up to the first patch end they are computed exactly
as verification computes them; for them the second decoder call would be wasted.
"""

from __future__ import annotations

from fastblt.runtime.backends.protocol import DecoderRows
from fastblt.runtime.methods.method import Origin, Round
from fastblt.runtime.sequence.requests import Steps, score, score_known
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session


def verify(
    session: Session, sampler: Sampler, draft: Draft, *, in_parts: bool, before: DecoderRows | None = None
) -> Steps[Round]:
    """Append a draft, score it as far as needed, and keep what the model itself would have written.

    Args:
        session: its last token is the only one that is not scored, or, with ``before``, is scored too.
        sampler: decides which tokens are kept.
        draft: at least one token.
        in_parts: verify what needs no new latent first.
        before: a copy of the last token's row, where it has been scored already.

    Returns:
        The tokens that were kept and the one after them, which is appended and not scored.
    """
    start, judge = session.length, Judge(draft, sampler)
    if before is not None:
        judge.read(before)
    session.append(draft.tokens)
    if in_parts and judge.next_token is None and (known := (yield from score_known())) is not None:
        judge.read(known)
    if judge.next_token is None:
        judge.read((yield from score()))
    kept, next_token = judge.kept, judge.next_token
    assert next_token is not None, "the row after the draft decides"
    session.rewind(start + kept)
    session.append([next_token])
    tokens = tuple(draft.tokens)
    agreed = kept + (tokens[kept : kept + 1] == (next_token,))  # before a dead end, the draft's own token is the next
    origins: list[Origin] = ["accepted"] * min(agreed, draft.chosen)
    origins += ["forced"] * (agreed - len(origins))
    if agreed == kept:
        origins.append("free" if kept == len(tokens) else "corrected")
    rejected = tokens[agreed : draft.chosen]
    return Round((*tokens[:kept], next_token), tuple(origins), rejected, draft.chosen, judge.logprobs)


class Judge:
    """Reads the model's rows about a draft, in pieces, until one of them decides what follows what is kept."""

    def __init__(self, draft: Draft, sampler: Sampler) -> None:
        self.kept = 0
        """Leading drafted tokens that are kept."""
        self.next_token: int | None = None
        """The token after them; None: more rows are needed."""
        self.logprobs: tuple[float, ...] = ()
        self._draft, self._sampler = draft, sampler

    def read(self, rows: DecoderRows) -> None:
        """Judge the tokens that the next rows are about."""
        first, sampler = self.kept, self._sampler
        self.kept, self.next_token = sampler.verify(self._draft, first, rows)
        if sampler.logprobs and self.kept >= first:
            after = [] if self.next_token is None else [self.next_token]
            decided = [*self._draft.tokens[first : self.kept], *after]
            self.logprobs += sampler.log_probabilities(rows.logits[: len(decided)], decided)
