"""Stands in for a backend whose model knows one text by heart."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
from fakes.only_sequence import OnlySequence

from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID, VOCAB_SIZE
from fastblt.runtime.backends.protocol import ROW_CAPACITY, DecoderRows, Drafted, Floats, Ids, Pick


@dataclasses.dataclass(eq=False)
class ScriptedBackend(OnlySequence):
    """Runs a model that knows one text by heart and drafts wrongly at given positions; checks and notes every call.

    Position p is token p of ``script``; the decoder's row p is about token p + 1.
    """

    script: Ids
    config: BltConfig
    max_bytes: int
    surprising: Collection[int] = ()
    """Positions with an entropy above the threshold: each closes its patch."""
    misdrafted: Collection[int] = ()
    """Positions whose token a draft gets wrong."""
    name: str = "scripted"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.fed = np.zeros(self.max_bytes + 200, dtype=np.int64)
        self.scored = self.encoded = 0
        self.pooled: list[tuple[int, int]] = []
        self.latents: list[tuple[int, int]] = []
        self.block: tuple[int, list[int], int] = (0, [], 0)
        """Position, bytes and latent of the block that is being denoised."""

    def _note(self, part: str, position: int, rows: int) -> None:
        assert 1 <= rows <= ROW_CAPACITY
        self.calls.append((part, position, rows))

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        self._note("patcher", position, len(ids))
        assert position <= self.scored, "positions without a token"
        self.scored = position + len(ids)
        self.fed[position : self.scored] = ids
        high = [p in self.surprising for p in range(position, self.scored)]
        return np.where(high, self.config.patching.threshold + 1, 0.0).astype(np.float32)

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        history = self.config.hash.context - 1
        rows = len(ids) - history
        self._note("encoder", position, rows)
        assert position <= self.encoded, "positions that were never encoded"
        self.encoded = position + rows
        before = [0] * max(0, history - position) + self.fed[max(0, position - history) : position].tolist()
        assert ids.tolist() == before + self.fed[position : self.encoded].tolist()
        assert starts.dtype == ends.dtype == np.int64
        assert len(starts) == len(ends) >= 1
        assert (starts < ends).all()
        assert (starts[1:] == ends[:-1]).all()
        assert ends[-1] <= self.encoded
        self.pooled = list(zip(starts.tolist(), ends.tolist(), strict=True))

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        self._note("global", first_patch, count)
        assert first_patch <= len(self.latents)
        assert count <= len(self.pooled)
        self.latents[first_patch:] = self.pooled[:count]
        # Patches follow one another without a gap, however often they were rolled back.
        assert [start for start, _ in self.latents] == [0, *(end for _, end in self.latents[:-1])]

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        self._note("decoder", position, len(ids))
        assert len(latents) == len(ids)
        assert (np.diff(latents) >= 0).all()
        clean = len(ids) - block
        drafting = block > 0 and self.calls[-2][0] == "decoder"
        if block:
            self._check_block(position, ids, latents.tolist(), clean, drafting)
        if not drafting:
            assert ids[:clean].tolist() == self.fed[position : position + clean].tolist()
            for row, latent in enumerate(latents[:clean].tolist(), position):
                self._check_latent(row, latent)
        rows = self._rows([self._next(position + i + 1) for i in range(clean)])
        return rows.followed_by(self._block_rows(position + clean, block)) if block else rows

    def _check_latent(self, row: int, latent: int) -> None:
        end, longest = self.latents[latent][1], self.config.patching.max_patch_length
        assert end <= row + 1, "a latent that holds a later byte"
        assert not any(p in self.surprising for p in range(end, row + 1)), "a latent that is not the newest"
        assert longest is None or row + 1 - end < longest, "a latent that is not the newest"

    def _check_block(self, position: int, ids: Ids, latents: list[int], clean: int, drafting: bool) -> None:
        """Check that a block comes after the last token, reads one latent, and keeps its decided bytes.

        Args:
            position: of the first row.
            ids: tokens, then the block.
            latents: which one each row reads.
            clean: tokens.
            drafting: no other part has been run: the token, if there is one, is not scored.
        """
        content, latent = ids[clean:].tolist(), latents[-1]
        assert len(content) <= self.config.block_size
        assert latents[clean:] == [latent] * len(content)
        if clean == 0:
            was_at, before, read = self.block
            assert (position, latent) == (was_at, read)
            assert all(old in (MASK_ID, new) for old, new in zip(before, content, strict=True))
            assert content != before, "a step that decided nothing"
        else:
            assert content == [MASK_ID] * len(content)
            if drafting:
                assert clean == 1, "the last token, which is not scored"
                assert latents == [latent] * len(latents)
                self.fed[position] = ids[0]
            self._check_latent(position + clean - 1 - drafting, latent)
        self.block = (position + clean, content, latent)

    def _block_rows(self, position: int, count: int) -> DecoderRows:
        """Return rows for the script, except for what is misdrafted; some bytes are more likely than others."""
        at = np.arange(position, position + count)
        rows = self._rows([self._drafted(p) for p in at.tolist()])
        return rows._replace(
            probability=(0.4 + 0.1 * (at % 5)).astype(np.float32), entropy=(1.0 - 0.2 * (at % 5)).astype(np.float32)
        )

    def _drafted(self, position: int) -> int:
        token = int(self.script[position])
        return 4 + (token - 3) % 256 if position in self.misdrafted else token

    def _next(self, position: int) -> int:
        right = bool((self.fed[:position] == self.script[:position]).all())
        return int(self.script[position]) if right else VOCAB_SIZE - 1

    def _rows(self, best: list[int]) -> DecoderRows:
        logits = np.zeros((len(best), VOCAB_SIZE), dtype=np.float32)
        logits[np.arange(len(best)), best] = 30.0
        ones = np.ones(len(best), dtype=np.float32)
        return DecoderRows(np.array(best, dtype=np.int64), ones, ones * 0, logits)

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        self._note("draft", position, count)
        assert len(ids) == self.config.hash.context
        assert 0 <= latent < len(self.latents)
        end = self.latents[latent][1]
        made_for_this = self.calls[-2][0] == "global" and end == position + 1
        assert end <= position or made_for_this, "a latent that holds the last token, which is not scored"
        if self.config.decoder_input == "encoder":
            self.encoded = position + count
        assert position + count < len(self.script), "the test's text is too short"
        tokens: list[int] = []
        for i in range(count):
            tokens.append(self._drafted(position + 1 + i))
            if pick is not None:
                tokens[-1], more = pick(self._rows([tokens[-1]]))
                if not more:
                    break
        return Drafted(np.array(tokens), np.ones(len(tokens), dtype=np.float32))

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        return True

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        return 1000 + rows
