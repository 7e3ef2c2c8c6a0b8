"""One sequence in flight: committed tokens, their patches, and how far each part has read them.

Positions count tokens from BOS = 0. A token is *scored* when all four parts have run on it in order, which tells
the distribution of the token after it. The patcher's rule, applied to scored tokens only, decides which latent a
row reads; nothing depends on where the buffer happens to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Literal

import numpy as np

from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, SPACE_LIKE
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    MAX_ROWS,
    Backend,
    CapacityError,
    DecoderRows,
    Floats,
    Ids,
    Pick,
    encodes_whole_patches,
)
from fastblt.runtime.sequence.documents import Documents
from fastblt.runtime.sequence.stats import RunStats

#: Which latent the rows of a block read: ``closed``, the newest of a closed patch; or ``partial``, that of the open
#: patch as far as it has come (the paper's o_M).
Latent = Literal["closed", "partial"]


_NO_BLOCK: Ids = np.empty(0, dtype=np.int64)


class Session:
    """Tokens, patches and progress over a backend's caches; a backend serves one session at a time."""

    def __init__(self, backend: Backend, stats: RunStats | None = None) -> None:
        self.backend = backend
        self.config = backend.config
        self.stats = stats if stats is not None else RunStats()
        self._history = self.config.hash.context - 1
        self._whole_patches = encodes_whole_patches(self.config)
        capacity = backend.max_bytes + 1 + DRAFT_SLACK
        self._ids = np.zeros(self._history + capacity, dtype=np.int64)
        self._latent_of = np.zeros(capacity, dtype=np.int64)
        self._documents = Documents(capacity) if self.config.document_masks else None
        self.patch_ends: list[int] = []
        """Position after the last token of each closed patch."""
        self.length = 0
        """Tokens."""
        self.scored = 0
        """Leading tokens that are scored."""
        self._patched_until = 0
        """Leading tokens that the patcher has read."""
        self._latents_ready = 0
        """Leading patches of ``patch_ends`` whose latents exist."""
        self._block_latent = 0
        backend.owner = self
        self.append([BOS_ID])

    @property
    def tokens(self) -> Ids:
        """The tokens, int64 [length]; a view."""
        return self._ids[self._history : self._history + self.length]

    @property
    def open_start(self) -> int:
        """First position of the patch that is not closed."""
        return self.patch_ends[-1] if self.patch_ends else 0

    def append(self, tokens: Sequence[int] | Ids) -> None:
        """Put tokens at the end; they are not scored yet.

        Raises:
            CapacityError: they do not fit.
        """
        end = self.length + len(tokens)
        limit = self.backend.max_bytes + 1 + DRAFT_SLACK
        if end > limit:
            raise CapacityError(f"session: found {end - 1} bytes, expected at most max_bytes={self.backend.max_bytes}")
        self._ids[self._history + self.length : self._history + end] = tokens
        if self._documents is not None:
            self._documents.extend(self.length, tokens)
        self.length = end

    def rewind(self, length: int) -> None:
        """Forget the tokens from position ``length`` on; only lengths change, no cache is touched.

        Where the backend's caches have given up what the next rows see, the tokens that were scored are read again from
        the beginning.

        Raises:
            ValueError: ``length`` is not in 1..current length (BOS stays).
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"rewind: found length {length}, expected 1..{self.length}")
        self.length = length
        if self._patched_until > length:
            self._patched_until = length
            self.scored = min(self.scored, length)
            del self.patch_ends[int(self._latent_of[length - 1]) + 1 :]
            self._latents_ready = min(self._latents_ready, len(self.patch_ends))
            if not self.backend.can_resume_from(self.scored, self._unmade_start):
                self._start_over()

    @property
    def _unmade_start(self) -> int:
        """First position of the first patch without a latent."""
        return self.patch_ends[self._latents_ready - 1] if self._latents_ready else 0

    def _start_over(self) -> None:
        length, self.length = self.length, self.scored
        self._patched_until = self.scored = self._latents_ready = 0
        self.patch_ends.clear()
        if self.length:
            self.score()
        self.length = length

    def score(self) -> DecoderRows:
        """Run all parts on the tokens that are not scored.

        Returns:
            The decoder's rows of the last (at most `MAX_ROWS`) of them; the last row is about the next token.

        Raises:
            ValueError: every token is scored already.
        """
        return self._score(_NO_BLOCK, "closed")

    def score_in_parts(self) -> Iterator[DecoderRows]:
        """Score, but no more than is asked for.

        The first part are the rows that read latents which exist already: those before the first patch that closes
        among the new tokens. Only when the caller wants the rest as well are the new patches encoded. Verification
        that ends in the first part thus costs no encoder and no global call. A single such row is not worth a
        call of its own: as a rule the byte that it judges was drafted from that very row.

        Yields:
            Rows of the tokens in order, at most `MAX_ROWS` in all; each part is overwritten by the next call.
        """
        self._check_unscored()
        first, end = self.scored, self.length
        if end - first > MAX_ROWS:
            raise ValueError(f"score_in_parts: found {end - first} tokens to score, expected at most {MAX_ROWS}")
        self._segment(end)
        known = int(np.searchsorted(self._latent_of[first:end], self._latents_ready))
        if 1 < known < end - first:
            if not self._whole_patches:
                self._encode(first, end, partial=False)
            yield self._decode(first + known, _NO_BLOCK)
        self._make_latents(end, partial=False)
        yield self._decode(end, _NO_BLOCK)

    def score_with_block(self, block: Ids, latent: Latent) -> tuple[DecoderRows, DecoderRows]:
        """Score, and denoise a block after the last token in the same decoder call.

        Args:
            block: int64 [size], MASK_ID where a byte is not decided. Nothing of it is committed.
            latent: which one the block's rows read, here and in later calls of `denoise`.

        Returns:
            Rows of the tokens that were not scored, as `score` gives them, and of the block; block row i is about
            the block's own byte i. Both are overwritten by the next call.
        """
        self._check_block(block)
        return _split(self._score(block, latent), len(block))

    def draft_with_block(self, block: Ids) -> tuple[DecoderRows, DecoderRows]:
        """Like `score_with_block`, but the decoder alone: the last token is read, and stays unscored.

        All rows read the newest closed latent, so no other part has to run.

        Returns:
            The row of the last token (about the block's first byte), and the block's.
        """
        position = self._check_draft(len(block))
        self._check_block(block)
        self._block_latent = self._latents_ready - 1
        rows = self._run_block(position, np.concatenate([self.tokens[-1:], block]), len(block))
        return _split(rows, len(block))

    def denoise(self, block: Ids) -> DecoderRows:
        """Run a block again, after `score_with_block` or `draft_with_block`, with some of its bytes decided."""
        self._check_owner()
        return self._run_block(self.length, block, len(block))

    def draft(self, count: int, pick: Pick | None = None) -> tuple[Ids, Floats]:
        """Continuation by the decoder alone: all rows read the newest latent, patches are ignored.

        The last token must be the only one that is not scored. Nothing is committed.

        Args:
            count: most bytes.
            pick: chooses each byte and whether to go on; None: greedy, ``count`` bytes.

        Returns:
            Tokens int64 [n] and the probabilities float32 [n] of the rows' most likely tokens.
        """
        position = self._check_draft(count)
        context = self._ids[position : self._history + self.length]
        began = perf_counter()
        seen = 0 if self._documents is None else int(self._documents.first_byte[position])
        drafted = self.backend.draft(position, context, self._latents_ready - 1, count, pick, seen)
        calls, seconds = len(drafted.tokens), perf_counter() - began
        self._count("decoder", position, 1, seconds - drafted.encoder_seconds, calls)
        if self.config.decoder_input == "encoder":
            self._count("encoder", position, 1, drafted.encoder_seconds, calls)
        return drafted.tokens, drafted.probabilities

    def _check_draft(self, count: int) -> int:
        """The position of the last token, if a draft of ``count`` bytes can follow it."""
        self._check_owner()
        position = self.length - 1
        # A row reads the byte before the one it predicts: the first stands where the last token does.
        self._check_room("draft", count, first=position)
        if self.scored != position:
            raise ValueError(f"draft: found {self.length - self.scored} tokens to score, expected 1")
        if not self.patch_ends:
            raise ValueError("draft: found no latent to read, score BOS first")
        return position

    def _check_block(self, block: Ids) -> None:
        size = self.config.block_size
        if not 1 <= len(block) <= size:
            raise ValueError(f"block: found {len(block)} bytes, expected 1..{size}, the size the model was trained on")
        self._check_room("block", len(block), first=self.length)

    def _check_room(self, what: str, count: int, first: int) -> None:
        room = len(self._latent_of) - first
        if count > room:
            raise CapacityError(
                f"{what}: found {count} bytes after position {self.length - 1}, expected at most {room}"
            )

    def _check_owner(self) -> None:
        if self.backend.owner is not self:
            raise ValueError("session: another session has used the caches since, expected one at a time")

    def _check_unscored(self) -> None:
        self._check_owner()
        if self.scored == self.length:
            raise ValueError("score: found no token to score, append one first")

    def _score(self, block: Ids, latent: Latent) -> DecoderRows:
        self._check_unscored()
        while self.length - self.scored > MAX_ROWS:
            self._score_piece(self.scored + MAX_ROWS, _NO_BLOCK, "closed")
        return self._score_piece(self.length, block, latent)

    def _score_piece(self, end: int, block: Ids, latent: Latent) -> DecoderRows:
        self._segment(end)
        partial = latent == "partial" and end > self.open_start
        self._make_latents(end, partial=partial)
        self._block_latent = len(self.patch_ends) - (0 if partial else 1)
        return self._decode(end, block)

    def _segment(self, end: int) -> None:
        """Let the patcher, if there is one, read the tokens before ``end``, and close patches."""
        first = self._patched_until
        if first == end:
            return
        tokens, rule = self.tokens[first:end], self.config.patching
        if rule.mode == "entropy":
            began = perf_counter()
            entropies = self.backend.run_patcher(first, tokens, self._visible_from(first, end))
            self._count("patcher", first, end - first, perf_counter() - began)
            ends = (entropies > rule.threshold).tolist()
        elif rule.mode == "space":
            ends = space_ends(self._ids[self._history + first - 1 : self._history + end] if first else tokens)
            ends = ends[1:] if first else ends
        else:
            ends = [False] * len(tokens)
        self._close_patches(first, ends)
        self._patched_until = end

    def _visible_from(self, first: int, end: int, block: int = 0) -> Ids | None:
        """First position that each row from ``first`` to ``end`` may see, and each of a block after them."""
        return None if self._documents is None else self._documents.bytes_seen(first, end, block)

    def _decode(self, end: int, block: Ids) -> DecoderRows:
        """Decoder rows of the tokens from the first that is not scored to ``end``, and of a block after them."""
        first = self.scored
        ids, latents = self.tokens[first:end], self._latent_of[first:end]
        if len(block):
            ids = np.concatenate([ids, block])
            latents = np.concatenate([latents, np.full(len(block), self._block_latent)])
        rows = self._run_decoder(first, ids, latents, len(block))
        self.scored = end
        return rows

    def _run_block(self, position: int, ids: Ids, block: int) -> DecoderRows:
        """Decoder rows that all read the block's latent; the last ``block`` of them are the block."""
        return self._run_decoder(position, ids, np.full(len(ids), self._block_latent), block)

    def _run_decoder(self, position: int, ids: Ids, latents: Ids, block: int) -> DecoderRows:
        began = perf_counter()
        seen = self._visible_from(position, position + len(ids) - block, block)
        rows = self.backend.run_decoder(position, ids, latents, block, seen)
        self._count("decoder", position, len(ids), perf_counter() - began)
        return rows

    def _close_patches(self, first: int, ends: Sequence[bool]) -> None:
        """Close patches among new rows: where the mode's rule ends one, after BOS, and where one is long enough."""
        longest = self.config.patching.max_patch_length
        start = self.open_start
        for position, is_end in enumerate(ends, first):
            if is_end or position == 0 or (longest is not None and position - start + 1 == longest):
                if self._documents is not None:
                    self._documents.close_patch(len(self.patch_ends), start, position + 1)
                start = position + 1
                self.patch_ends.append(start)
            self._latent_of[position] = len(self.patch_ends) - 1

    def _make_latents(self, end: int, *, partial: bool) -> None:
        """Make the latents of the patches that have none yet, and, ``partial``, the open patch's up to ``end``."""
        count = len(self.patch_ends) - self._latents_ready + partial
        if count or not self._whole_patches:
            self._encode(self.scored, end, partial=partial)
        if count:
            began = perf_counter()
            seen = None if self._documents is None else self._documents.patches_seen(self._latents_ready, count)
            self.backend.run_global(self._latents_ready, count, seen)
            self._count("global", self._latents_ready, count, perf_counter() - began)
            self._latents_ready = len(self.patch_ends)

    def _encode(self, first: int, end: int, *, partial: bool) -> None:
        """Encode patches that have no latent yet; where patches are not encoded whole, the rows from ``first`` on."""
        bounds = [self._unmade_start, *self.patch_ends[self._latents_ready :]]
        if partial or len(bounds) == 1:
            bounds.append(end)
        if self._whole_patches:
            first, end = bounds[0], bounds[-1]
        starts, ends = np.array(bounds[:-1], dtype=np.int64), np.array(bounds[1:], dtype=np.int64)
        began = perf_counter()
        seen = self._visible_from(first, end)
        self.backend.run_encoder(first, self._ids[first : self._history + end], starts, ends, seen)
        self._count("encoder", first, end - first, perf_counter() - began)

    def _count(self, part: str, position: int, rows: int, seconds: float, calls: int = 1) -> None:
        """Book calls of a part, each of ``rows`` rows."""
        self.stats.part_seconds[part] += seconds
        self.stats.nfe[part] += calls
        self.stats.moved_bytes += calls * self.backend.moved_bytes(part, position, rows)


_SPACE_LIKE = np.array(SPACE_LIKE)


def space_ends(ids: Ids) -> list[bool]:
    """Where the patch mode ``space`` ends a patch (see `fastblt.models.patching`): tokens that follow each other."""
    like = _SPACE_LIKE[ids]
    ends = ids < BYTE_OFFSET
    ends[1:] |= like[1:] & ~like[:-1]
    found: list[bool] = ends.tolist()
    return found


def _split(rows: DecoderRows, block: int) -> tuple[DecoderRows, DecoderRows]:
    """Rows of tokens, and the last ``block`` rows."""
    return rows.part(0, -block), rows.part(-block)
