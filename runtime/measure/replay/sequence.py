"""Runs every call of a sequence on a real one, and replaces what it returns.

The model "knows" one fixed text, drafts agree with it at one rate, patches close at another, and blocks take a number
of steps. Greedy decoding only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.batching import DecoderCall, DraftCall, EncoderCall, GlobalCall, PartCall, PatcherCall
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    BackendSequence,
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
    Progress,
    State,
)
from fastblt.runtime.measure.replay.draws import Draws, ReplayCounts, another_byte, replay_text
from fastblt.runtime.methods.replay_profile import ReplayProfile

#: Positions past ``max_bytes`` that a row can be about.
_MARGIN = 4 * DRAFT_SLACK


class ReplaySequence:
    """Implements `BackendSequence` over another sequence, whose answers it replaces.

    Args:
        real: runs every call.
        profile: the rates.
        config: the model's.
        max_bytes: longest text.
        stream: index of the sequence, which decides its text and where its chances begin.
        owned: whether closing the sequence closes the real one.
    """

    def __init__(
        self,
        real: BackendSequence,
        profile: ReplayProfile,
        config: BltConfig,
        max_bytes: int,
        stream: int = 0,
        *,
        owned: bool = True,
    ) -> None:
        self.reopen(real)
        self._owned = owned
        self.profile = profile
        length = max_bytes + _MARGIN
        self.text = replay_text(length, stream)
        """The model's tokens, int64; the text's byte at position p is ``text[p]``, whatever the prompt."""
        self.ends: list[int] = []
        """Position after the last token of each patch that has a latent."""
        self._draws = Draws(stream)
        self._closes = self._draws.patch_ends(length, profile.patch_rate)
        self._entropy = np.float32(config.patching.threshold + 1)
        self._counts = ReplayCounts()
        self._agreeing = 0
        self._steps_left = 0
        self._pooled: list[int] = []
        self._drafted = self.text[:0]

    def reopen(self, real: BackendSequence) -> None:
        """Go on with another real sequence, and with chances where they are."""
        self.real = real
        self.is_open = True

    def take_counts(self) -> ReplayCounts:
        """Return what was counted since the last call; patches are those of the last text."""
        found, self._counts = self._counts, ReplayCounts()
        if len(self.ends) > 1:
            found.patches, found.patch_bytes = len(self.ends) - 1, self.ends[-1] - self.ends[0]
        return found

    def asked(self, call: PartCall) -> PartCall:
        """Return what the real sequence is asked in place of a call; `replaced` has to follow."""
        if not isinstance(call, DraftCall):
            return call
        agreeing = self._draws.agreeing(self.profile.draft_rate)
        self._drafted = self._draft(call.position + 1, call.most, agreeing)
        return call if call.pick is None else call._replace(pick=self._replaced_rows(call.pick))

    def replaced(self, call: PartCall, result: Any) -> Any:
        """Return what the call returns in place of the real sequence's result.

        Entropies close patches at the wanted rate; rows predict the fixed text, and those of a block, and drafts,
        agree with it at the wanted rate.
        """
        if isinstance(call, PatcherCall):
            return self._closes[call.position : call.position + len(call.ids)] * self._entropy
        if isinstance(call, EncoderCall):
            self._pooled = call.ends.tolist()
        elif isinstance(call, GlobalCall):
            self.ends[call.first_patch :] = self._pooled[: call.patches]
        elif isinstance(call, DecoderCall):
            return self._rows(call, result)
        elif call.pick is None:
            return Drafted(self._drafted, np.ones(call.most, dtype=np.float32), result.encoder_seconds)
        else:
            return result._replace(probabilities=np.ones(len(result.tokens), dtype=np.float32))
        return result

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`."""
        call = PatcherCall(position, ids, visible_from)
        found: Floats = self.replaced(call, self.real.run_patcher(*call))
        return found

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_encoder`."""
        call = EncoderCall(position, ids, starts, ends, visible_from)
        self.real.run_encoder(*call)
        self.replaced(call, None)

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global`."""
        call = GlobalCall(first_patch, count, visible_from)
        self.real.run_global(*call)
        self.replaced(call, None)

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`."""
        call = DecoderCall(position, ids, latents, block, visible_from)
        found: DecoderRows = self.replaced(call, self.real.run_decoder(*call))
        return found

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `BackendSequence.draft`."""
        call = DraftCall(position, ids, latent, count, pick, visible_from)
        asked = self.asked(call)
        assert isinstance(asked, DraftCall)
        found: Drafted = self.replaced(call, self.real.draft(*asked))
        return found

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from` by the real one."""
        return self.real.can_resume_from(position, open_patch)

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes` by the real one."""
        return self.real.moved_bytes(part, position, rows)

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state` by the real one."""
        return self.real.state(progress)

    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore` by the real one."""
        self.real.restore(state, progress)

    def reset(self) -> None:
        """Implement `BackendSequence.reset` by the real one."""
        self.real.reset()

    def close(self) -> None:
        """Implement `BackendSequence.close`; a real sequence that others use stays open."""
        if self.is_open and self._owned:
            self.real.close()
        self.is_open = False

    def _rows(self, call: DecoderCall, found: DecoderRows) -> DecoderRows:
        position, ids, block = call.position, call.ids, call.block
        clean = len(ids) - block
        best = self.text[position + 1 : position + 1 + len(ids)].copy()
        probability = np.ones(len(ids), dtype=np.float32)
        entropy = np.zeros(len(ids), dtype=np.float32)
        if block:
            # Row i of a block is about byte i itself.
            best[clean:] = self._draft(position + clean, block, self._begin_step(ids[clean:]))
            if clean and self.profile.clean_drafts:
                best[clean - 1] = best[clean]
            undecided = clean + self._left_for_later(ids[clean:])
            probability[undecided], entropy[undecided] = 0.0, np.inf
        return found._replace(best=best, probability=probability, entropy=entropy)  # logits may be on a device

    def _replaced_rows(self, pick: Pick) -> Pick:
        """Return what picks from the fixed draft in place of the real rows."""
        drafted, step = self._drafted, 0
        one, zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)

        def replaced(row: DecoderRows) -> tuple[int, bool]:
            nonlocal step
            answer = row._replace(best=drafted[step : step + 1], probability=one, entropy=zero)
            step += 1
            return pick(answer)

        return replaced

    def _draft(self, position: int, count: int, agreeing: int) -> Ids:
        """Return the text from ``position`` on, with another byte after those that agree."""
        tokens = self.text[position : position + count].copy()
        if agreeing < count:
            tokens[agreeing] = another_byte(int(tokens[agreeing]))
        return tokens

    def _begin_step(self, block: Ids) -> int:
        """Count a decoder call of a block (the first, if all is masked); return how many of its bytes agree."""
        if (block == MASK_ID).all():
            self._agreeing = self._draws.agreeing(self.profile.block_rate) + self.profile.first_is_sure
            self._steps_left = self._draws.steps(self.profile.steps or 1.0)
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
