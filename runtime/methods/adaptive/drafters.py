"""Drafts for adaptive decoding, byte by byte (BLT-S) or by blocks (BLT-DV), as long as another byte pays.

One more drafted byte is worth its chance to survive times the seconds that a byte takes at the moment; it costs the
seconds of one draft row and of one more row in verification. Chances are learned from the drafter's own probabilities
and entropies, seconds by the clock (`estimates`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.protocol import DecoderRows
from fastblt.runtime.methods.adaptive.estimates import Acceptance, LinearCost, Pace
from fastblt.runtime.methods.draft_walk import DraftWalk
from fastblt.runtime.methods.method import Round
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.requests import Steps, draft, draft_with_block, score_with_block
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

#: Bytes of a draft before anything is known.
_FIRST_DRAFT = 4
#: Longest draft of `ByteDrafter`.
LONGEST_DRAFT = 24


class Drafter(Protocol):
    """Drafts in one particular manner, and holds what has been learned about it."""

    pace: Pace

    def round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        """Draft and verify once."""
        ...


class ByteDrafter:
    """Drafts as BLT-S does, and ends a draft where another byte would not pay."""

    def __init__(self, config: BltConfig) -> None:
        self.pace = Pace()
        self._longest_patch = config.patching.max_patch_length or LONGEST_DRAFT
        self._acceptance = Acceptance(config.patching.threshold)
        self._row = LinearCost()
        self.verification = LinearCost()
        """Of a call that verifies a draft, by its length; other drafters observe it too."""

    def round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        """Implement `Drafter.round`."""
        acceptance, now = self._acceptance, self.pace.seconds_per_byte
        price = (self._row.mean + self.verification.each) / now if now else 0.0
        limit = self._longest_patch - (session.length - session.open_start)
        survival, surprise = acceptance.mean, 0.0
        kinds: list[int] = []
        walk = DraftWalk(sampler)

        def pick(row: DecoderRows) -> tuple[int, bool]:
            nonlocal survival, surprise
            surprise = max(surprise, row.entropy.item())
            kind = acceptance.classify(row.probability.item(), surprise, len(kinds) >= limit)
            kinds.append(kind)
            survival *= acceptance.chance(kind)
            token = walk.add(row, 0)
            return token, survival > price and walk.goes_on

        began = session.now()
        if walk.goes_on:
            yield from draft(LONGEST_DRAFT if now else _FIRST_DRAFT, pick)
        drafted = session.now()
        whole = walk.finish()
        found = yield from verify(session, sampler, whole, in_parts=False)
        if kinds:
            self._row.observe(len(kinds), drafted - began)
        self.verification.observe(len(whole.tokens), session.now() - drafted)
        acceptance.observe(kinds, found.accepted)
        return found


class BlockDrafter:
    """Drafts as BLT-DV in one step does, and cuts a block where verifying another byte would not pay.

    Blocks read the latent that the model's blocks were trained on.
    """

    def __init__(self, config: BltConfig) -> None:
        self.pace = Pace()
        self._latent = config.block_latent
        self._masked = np.full(config.block_size, MASK_ID, dtype=np.int64)
        self._acceptance = Acceptance(config.patching.threshold)
        self._verification = LinearCost()

    def round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        """Implement `Drafter.round`."""
        walk = DraftWalk(sampler)
        kinds: list[int] = []
        answer: DecoderRows | None = None
        if walk.goes_on:
            before, rows, answer = yield from self._read()
            kinds = self._cut(walk, before.followed_by(rows.part(1)))
        cut = walk.finish()
        began = session.now()
        found = yield from verify(session, sampler, cut, in_parts=True, before=answer)
        self._verification.observe(len(cut.tokens), session.now() - began)
        self._acceptance.observe(kinds, found.accepted)
        return found

    def _read(self) -> Steps[tuple[DecoderRows, DecoderRows, DecoderRows | None]]:
        """Return the last token's row, the block's, and the former again, copied, where it is the model's answer."""
        if self._latent == "closed":
            before, rows = yield from draft_with_block(self._masked)
            return before, rows, None
        before, rows = yield from score_with_block(self._masked, self._latent)
        return before, rows, before.copy()

    def _cut(self, walk: DraftWalk, rows: DecoderRows) -> list[int]:
        """Draft as many bytes as are worth verifying, at least one, and return their classes."""
        now, price = self.pace.seconds_per_byte, self._verification.each
        kinds: list[int] = []
        survival, surprise = 1.0, 0.0
        for index, (probability, entropy) in enumerate(
            zip(rows.probability.tolist(), rows.entropy.tolist(), strict=True)
        ):
            surprise = max(surprise, entropy)
            kind = self._acceptance.classify(probability, surprise, at_limit=False)
            survival *= self._acceptance.chance(kind)
            if kinds and (survival * now < price or not walk.goes_on):
                break
            walk.add(rows, index)
            kinds.append(kind)
        return kinds
