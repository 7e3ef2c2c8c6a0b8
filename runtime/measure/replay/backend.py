"""Replays: runs a real backend for its cost, and replaces its answers at given rates.

Random weights draft nothing that verification keeps. To measure what a geometry costs before anything is trained,
every call runs on the real backend, and what comes back is replaced: the model "knows" one fixed text, drafts agree
with it at one rate, patches close at another, and blocks take a number of steps. Methods and session
are the ordinary ones, so what is measured are the real graphs and the real control flow. Greedy decoding only.

Runs are short, so chances are not drawn but spread evenly: the n-th draft takes the quantile n times the golden ratio
(without the integer part), so that means are soon right. Patches do the same with another irrational number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BYTE_OFFSET, MASK_ID, VOCAB_SIZE
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    Backend,
    BackendSequence,
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
    Progress,
    State,
)
from fastblt.runtime.methods.replay_profile import ReplayProfile

_DRAFT_TURN = (math.sqrt(5) - 1) / 2
_PATCH_TURN = math.sqrt(2) - 1
#: Positions past ``max_bytes`` that a row can be about.
_MARGIN = 4 * DRAFT_SLACK


@dataclass
class ReplayCounts:
    """Counts what a replay really showed."""

    blocks: int = 0
    steps: int = 0
    """Decoder calls of these blocks."""
    patches: int = 0
    """Patches that closed, BOS's left out."""
    patch_bytes: int = 0
    """Bytes in them."""

    def add(self, other: ReplayCounts) -> None:
        """Add the counts of another run."""
        self.blocks += other.blocks
        self.steps += other.steps
        self.patches += other.patches
        self.patch_bytes += other.patch_bytes


class ReplayBackend:
    """Implements `Backend`, and its only sequence, over another one, whose answers it replaces.

    Args:
        real: a sequence of it runs every call.
        profile: the rates.
        sequence: that one, which other replays use too, text by text; None: a new one.
    """

    def __init__(self, real: Backend, profile: ReplayProfile, sequence: BackendSequence | None = None) -> None:
        self.real = real
        self._shared = sequence
        self.profile = profile
        self.name = real.name
        self.device = real.device
        self.config: BltConfig = real.config
        self.max_bytes = real.max_bytes
        self.sequences, self.sequence_bytes = 1, real.sequence_bytes
        length = real.max_bytes + _MARGIN
        self.text = replay_text(length)
        """The model's tokens, int64; the text's byte at position p is ``text[p]``, whatever the prompt."""
        self._closes = _patch_ends(length, profile.patch_rate)
        self._drafts = 0
        self._blocks = 0
        self._agreeing = 0
        self._steps_left = 0
        self._counts = ReplayCounts()
        self._pooled: list[int] = []
        self._ends: list[int] = []
        """Position after the last token of each patch that has a latent."""

    @property
    def model_digest(self) -> str:
        """Implement `Backend.model_digest`."""
        return self.real.model_digest

    def new_sequence(self) -> ReplayBackend:
        """Implement `Backend.new_sequence`."""
        self._sequence = self._shared or self.real.new_sequence()
        return self

    def close(self) -> None:
        """Implement `BackendSequence.close`; a sequence that others use stays open."""
        if self._shared is None:
            self._sequence.close()

    def take_counts(self) -> ReplayCounts:
        """Return what was counted since the last call; patches are those of the last text."""
        found, self._counts = self._counts, ReplayCounts()
        ends = self._ends
        if len(ends) > 1:
            found.patches, found.patch_bytes = len(ends) - 1, ends[-1] - ends[0]
        return found

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Run the real patcher, and return entropies that close patches at the wanted rate."""
        self._sequence.run_patcher(position, ids, visible_from)
        high = np.float32(self.config.patching.threshold + 1)
        return self._closes[position : position + len(ids)] * high

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_encoder` by the real one."""
        self._sequence.run_encoder(position, ids, starts, ends, visible_from)
        self._pooled = ends.tolist()

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global` by the real one."""
        self._sequence.run_global(first_patch, count, visible_from)
        self._ends[first_patch:] = self._pooled[:count]

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Run the real decoder, and return rows that predict the fixed text; rows of a block draft it."""
        found = self._sequence.run_decoder(position, ids, latents, block, visible_from)
        clean = len(ids) - block
        best = self.text[position + 1 : position + 1 + len(ids)].copy()
        probability = np.ones(len(ids), dtype=np.float32)
        entropy = np.zeros(len(ids), dtype=np.float32)
        if block:
            # Row i of a block is about byte i itself.
            best[clean:] = self._drafted(position + clean, block, self._begin_step(ids[clean:]))
            if clean and self.profile.clean_drafts:
                best[clean - 1] = best[clean]
            undecided = clean + self._left_for_later(ids[clean:])
            probability[undecided], entropy[undecided] = 0.0, np.inf
        return found._replace(best=best, probability=probability, entropy=entropy)  # logits may be on a device

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Run the real draft, and return one of the fixed text that agrees at the wanted rate."""
        agreeing = self._begin_draft(self.profile.draft_rate)
        tokens = self._drafted(position + 1, count, agreeing)
        probabilities = np.ones(count, dtype=np.float32)
        if pick is None:
            real = self._sequence.draft(position, ids, latent, count, None, visible_from)
            return Drafted(tokens, probabilities, real.encoder_seconds)
        step = 0

        def replaced(row: DecoderRows) -> tuple[int, bool]:
            nonlocal step
            zero = 0 * probabilities[:1]
            answer = row._replace(best=tokens[step : step + 1], probability=probabilities[:1], entropy=zero)
            step += 1
            return pick(answer)

        picked = self._sequence.draft(position, ids, latent, count, replaced, visible_from)
        return picked._replace(probabilities=probabilities[: len(picked.tokens)])

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from` by the real one."""
        return self._sequence.can_resume_from(position, open_patch)

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes` by the real one."""
        return self._sequence.moved_bytes(part, position, rows)

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state` by the real one."""
        return self._sequence.state(progress)

    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore` by the real one."""
        self._sequence.restore(state, progress)

    def reset(self) -> None:
        """Implement `BackendSequence.reset` by the real one."""
        self._sequence.reset()

    def _drafted(self, position: int, count: int, agreeing: int) -> Ids:
        """Return the text from ``position`` on, with another byte after those that agree."""
        tokens = self.text[position : position + count].copy()
        if agreeing < count:
            tokens[agreeing] = _other(int(tokens[agreeing]))
        return tokens

    def _begin_draft(self, rate: float) -> int:
        """Return how many bytes of a new draft agree: each quantile of the geometric distribution in its turn."""
        self._drafts += 1
        return _quantile(self._drafts * _DRAFT_TURN, rate)

    def _begin_step(self, block: Ids) -> int:
        """Count a decoder call of a block (the first, if all is masked); return how many of its bytes agree."""
        if (block == MASK_ID).all():
            self._agreeing = self._begin_draft(self.profile.block_rate) + self.profile.first_is_sure
            steps = self.profile.steps or 1.0
            self._blocks += 1
            self._steps_left = math.floor(self._blocks * steps) - math.floor((self._blocks - 1) * steps)
            self._counts.blocks += 1
        else:
            self._steps_left -= 1
        self._counts.steps += 1
        return self._agreeing

    def _left_for_later(self, block: Ids) -> NDArray[np.intp]:
        """Return the masked bytes that this step does not decide; it decides an equal part of them, from the left."""
        masked = np.flatnonzero(block == MASK_ID)
        if self.profile.clean_first and len(masked) == len(block):
            masked = masked[1:]
        return masked[len(masked) // max(1, self._steps_left) :]


def replay_text(length: int) -> Ids:
    """Return the text of every replay, tokens int64 [length]: pseudo-random bytes, never a special token."""
    return np.random.default_rng(2605).integers(BYTE_OFFSET, VOCAB_SIZE, length)


def _other(token: int) -> int:
    """Return a byte that is not this one."""
    return BYTE_OFFSET + (token - BYTE_OFFSET + 1) % 256


def _quantile(turn: float, rate: float) -> int:
    """Return the successes before the first failure at a rate: the quantile that is the turn's fractional part."""
    if rate >= 1.0:
        return 1 << 30
    if rate <= 0.0:
        return 0
    return int(math.log(1.0 - turn % 1.0) / math.log(rate))


def _patch_ends(length: int, rate: float) -> NDArray[np.float32]:
    """Return whether each position closes its patch, float32 0 or 1 [length]; the session also closes the longest.

    Every byte closes its patch with the same chance, so what is left of one that is too long is a patch like others.
    """
    closes = np.zeros(length, dtype=np.float32)
    position, turn = 0, 0
    while position < length:
        closes[position] = 1.0
        turn += 1
        position += 1 + _quantile(turn * _PATCH_TURN, rate)
    return closes
