"""Turns requests into calls of the model's parts: brings patches and latents up to date, then runs the decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.batching import DecoderCall, DraftCall
from fastblt.runtime.backends.protocol import MAX_ROWS, CapacityError, DecoderRows, Floats, Ids
from fastblt.runtime.sequence.latents import Latents
from fastblt.runtime.sequence.parts import Calls
from fastblt.runtime.sequence.requests import DenoiseRequest, DraftRequest, Latent, Request, ScoreRequest
from fastblt.runtime.sequence.token_buffer import TokenBuffer

_NO_BLOCK: Ids = np.empty(0, dtype=np.int64)


class Reader:
    """Reads the tokens of one sequence; its methods yield the calls that have to be made.

    Args:
        config: the model's.
        tokens: of the sequence.
    """

    def __init__(self, config: BltConfig, tokens: TokenBuffer) -> None:
        self.scored = 0
        """Leading tokens that are scored."""
        self._config = config
        self._tokens = tokens
        self._latents = Latents(config, tokens)
        self.patches = self._latents.patches
        self._block_latent = 0

    def calls(self, request: Request) -> Calls[Any]:
        """Return the calls that a request needs, and its answer: see `fastblt.runtime.sequence.requests`.

        Raises:
            CapacityError: a block or draft does not fit.
            ValueError: it cannot be asked for now.
        """
        if isinstance(request, ScoreRequest):
            return self._answer_score(request)
        return self._draft(request) if isinstance(request, DraftRequest) else self._denoise(request)

    def _answer_score(self, request: ScoreRequest) -> Calls[Any]:
        if self.scored == self._tokens.length:
            raise ValueError("score: found no token to score, append one first")
        if request.only_known:
            return (yield from self._score_known())
        end, block = self._tokens.length, request.block
        if block is not None:
            self._check_block(block)
        elif request.most is not None:
            end = min(end, self.scored + request.most)
        while end - self.scored > MAX_ROWS:
            yield from self._score_piece(self.scored + MAX_ROWS, _NO_BLOCK, "closed")
        if block is None:
            return (yield from self._score_piece(end, _NO_BLOCK, "closed"))
        rows = yield from self._score_piece(end, block, request.latent)
        return rows.part(0, -len(block)), rows.part(-len(block))

    def _score_piece(self, end: int, block: Ids, latent: Latent) -> Calls[DecoderRows]:
        """Run all parts on the unscored tokens before ``end``, and the decoder on a block after them."""
        self._block_latent = yield from self._latents.update(self.scored, end, latent)
        return (yield from self._decode(end, block))

    def _score_known(self) -> Calls[DecoderRows | None]:
        first, end = self.scored, self._tokens.length
        if end - first > MAX_ROWS:
            raise ValueError(f"score_known: found {end - first} tokens to score, expected at most {MAX_ROWS}")
        yield from self._latents.read_patches(end)
        known = int(np.searchsorted(self.patches.latent_of[first:end], self.patches.latents_ready))
        if not 1 < known < end - first:
            return None
        yield from self._latents.encode_open(first, first + known)
        return (yield from self._decode(first + known, _NO_BLOCK))

    def _decode(self, end: int, block: Ids) -> Calls[DecoderRows]:
        """Run the decoder on the tokens from the first that is not scored to ``end``, and on a block after them."""
        first = self.scored
        ids, latents = self._tokens.between(first, end), self.patches.latent_of[first:end]
        if len(block) and self._config.has_draft:
            clean: DecoderRows = (yield self._decoder_call(first, ids, latents, 0)).copy()
            self.scored = end
            return clean.followed_by((yield self._block_call(end, block, len(block))))
        if len(block):
            ids = np.concatenate([ids, block])
            latents = np.concatenate([latents, np.full(len(block), self._block_latent)])
        rows: DecoderRows = yield self._decoder_call(first, ids, latents, len(block))
        self.scored = end
        return rows

    def _denoise(self, request: DenoiseRequest) -> Calls[Any]:
        block = request.block
        if not request.with_last:
            return (yield self._block_call(self._tokens.length, block, len(block)))
        position = self._check_draft(len(block))
        self._check_block(block)
        self._block_latent = self._latents.newest
        ids = np.concatenate([self._tokens.between(position, position + 1), block])
        rows: DecoderRows = yield self._block_call(position, ids, len(block))
        return rows.part(0, 1), rows.part(1)

    def _block_call(self, position: int, ids: Ids, block: int) -> DecoderCall:
        """Return the call for rows that all read the block's latent; the last ``block`` of them are the block."""
        return self._decoder_call(position, ids, np.full(len(ids), self._block_latent), block)

    def _decoder_call(self, position: int, ids: Ids, latents: Ids, block: int) -> DecoderCall:
        seen = self._tokens.visible_from(position, position + len(ids) - block, block)
        return DecoderCall(position, ids, latents, block, seen)

    def _draft(self, request: DraftRequest) -> Calls[tuple[Ids, Floats]]:
        position = self._check_draft(request.most)
        context, documents = self._tokens.with_history(position, position + 1), self._tokens.documents
        seen = 0 if documents is None else int(documents.first_byte[position])
        latent = self._latents.newest
        if request.latent != "closed":
            latent = yield from self._latents.update(position, self._tokens.length, request.latent)
        drafted = yield DraftCall(position, context, latent, request.most, request.pick, seen)
        return drafted.tokens, drafted.probabilities

    def _check_draft(self, count: int) -> int:
        """Return the position of the last token; raise unless a draft of ``count`` bytes can follow it."""
        position = self._tokens.length - 1
        # A row reads the byte before the one it predicts: the first has the position of the last token.
        self._check_room("draft", count, first=position)
        if self.scored != position:
            raise ValueError(f"draft: found {self._tokens.length - self.scored} tokens to score, expected 1")
        if not self.patches.ends:
            raise ValueError("draft: found no latent to read, score BOS first")
        return position

    def _check_block(self, block: Ids) -> None:
        size = self._config.block_size
        if not 1 <= len(block) <= size:
            raise ValueError(f"block: found {len(block)} bytes, expected 1..{size}, the size the model was trained on")
        self._check_room("block", len(block), first=self._tokens.length)

    def _check_room(self, what: str, count: int, first: int) -> None:
        room = self._tokens.capacity - first
        if count > room:
            found = f"found {count} bytes after position {self._tokens.length - 1}"
            raise CapacityError(f"{what}: {found}, expected at most {room}")
