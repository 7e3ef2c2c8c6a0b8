"""One sequence in flight: committed tokens, their patches, and how far each part has read them.

Positions count tokens from BOS = 0. A token is *scored* when all four parts have run on it in order, which tells
the distribution of the token after it. The patcher's rule, applied to scored tokens only, decides which latent a
row reads; nothing depends on where the buffer happens to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from fastblt.models.tokens import BOS_ID
from fastblt.runtime.backend import (
    DRAFT_SLACK,
    MAX_ROWS,
    WHOLE_PATCH_LIMIT,
    Backend,
    DecoderRows,
    Floats,
    Ids,
)
from fastblt.runtime.stats import RunStats


class CapacityError(ValueError):
    """More positions are needed than the runtime was created for."""


class Session:
    """Tokens, patches and progress over a backend's caches; a backend serves one session at a time."""

    def __init__(self, backend: Backend, stats: RunStats | None = None) -> None:
        self.backend = backend
        self.config = backend.config
        self.stats = stats if stats is not None else RunStats()
        self._history = self.config.hash.context - 1
        longest = self.config.patching.max_patch_length
        # A decoder with an embedding of its own reads no byte states: a patch is then encoded whole, when it closes.
        self._whole_patches = (
            self.config.decoder_input == "embedding" and longest is not None and longest <= WHOLE_PATCH_LIMIT
        )
        capacity = backend.max_bytes + 1 + DRAFT_SLACK
        self._ids = np.zeros(self._history + capacity, dtype=np.int64)
        self._latent_of = np.zeros(capacity, dtype=np.int64)
        self.patch_ends: list[int] = []
        """Position after the last token of each closed patch."""
        self.length = 0
        """Tokens."""
        self.scored = 0
        """Leading tokens that are scored."""
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
        self.length = end

    def rewind(self, length: int) -> None:
        """Forget the tokens from position ``length`` on; only lengths change, no cache is touched.

        Raises:
            ValueError: ``length`` is not in 1..current length (BOS stays).
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"rewind: found length {length}, expected 1..{self.length}")
        self.length = length
        if self.scored > length:
            self.scored = length
            del self.patch_ends[int(self._latent_of[length - 1]) + 1 :]

    def score(self) -> DecoderRows:
        """Run all parts on the tokens that are not scored.

        Returns:
            The decoder's rows of the last (at most `MAX_ROWS`) of them; the last row is about the next token.

        Raises:
            ValueError: every token is scored already.
        """
        self._check_owner()
        if self.scored == self.length:
            raise ValueError("score: found no token to score, append one first")
        rows = self._score_piece()
        while self.scored < self.length:
            rows = self._score_piece()
        return rows

    def draft(self, count: int) -> tuple[Ids, Floats]:
        """Greedy continuation by the decoder alone: all rows read the newest latent, patches are ignored.

        The last token must be the only one that is not scored. Nothing is committed.

        Returns:
            Tokens int64 [count] and their probabilities float32 [count].
        """
        self._check_owner()
        position = self.length - 1
        if position + count > len(self._latent_of):
            raise CapacityError(
                f"draft: found {count} bytes after position {position}, expected at most "
                f"{len(self._latent_of) - position}"
            )
        if self.scored != position:
            raise ValueError(f"draft: found {self.length - self.scored} tokens to score, expected 1")
        if not self.patch_ends:
            raise ValueError("draft: found no latent to read, score BOS first")
        context = self._ids[position : self._history + self.length]
        began = perf_counter()
        tokens, probabilities = self.backend.draft(position, context, len(self.patch_ends) - 1, count)
        self._count("decoder", position, 1, began, calls=count)
        if self.config.decoder_input == "encoder":
            # The time of both parts is in the decoder's.
            self._count("encoder", position, 1, perf_counter(), calls=count)
        return tokens, probabilities

    def _check_owner(self) -> None:
        if self.backend.owner is not self:
            raise ValueError("session: another session has used the caches since, expected one at a time")

    def _score_piece(self) -> DecoderRows:
        first, end = self.scored, min(self.length, self.scored + MAX_ROWS)
        ids = self.tokens[first:end]
        began = perf_counter()
        entropies = self.backend.run_patcher(first, ids)
        self._count("patcher", first, end - first, began)
        closed = self._close_patches(first, entropies)
        self._encode(first, end, closed)
        latents = self._latent_of[first:end]
        began = perf_counter()
        rows = self.backend.run_decoder(first, ids, latents)
        self._count("decoder", first, end - first, began)
        self.scored = end
        return rows

    def _close_patches(self, first: int, entropies: Floats) -> int:
        """Apply the patcher's rule to new rows; returns how many patches they close."""
        rule = self.config.patching
        longest = rule.max_patch_length
        threshold = rule.threshold
        before = len(self.patch_ends)
        start = self.open_start
        for position, entropy in enumerate(entropies.tolist(), first):
            if entropy > threshold or position == 0 or (longest is not None and position - start + 1 == longest):
                start = position + 1
                self.patch_ends.append(start)
            self._latent_of[position] = len(self.patch_ends) - 1
        return len(self.patch_ends) - before

    def _encode(self, first: int, end: int, closed: int) -> None:
        """Encode the closed patches, or every row where patches are not encoded whole, and make the latents."""
        total = len(self.patch_ends)
        bounds = [0, *self.patch_ends] if total == closed else self.patch_ends[total - closed - 1 :]
        if self._whole_patches:
            if not closed:
                return
            first, end = bounds[0], bounds[-1]
        starts, ends = np.array(bounds[:-1], dtype=np.int64), np.array(bounds[1:], dtype=np.int64)
        if not closed:
            starts, ends = np.array([bounds[0]], dtype=np.int64), np.array([end], dtype=np.int64)
        began = perf_counter()
        self.backend.run_encoder(first, self._ids[first : self._history + end], starts, ends)
        self._count("encoder", first, end - first, began)
        if closed:
            began = perf_counter()
            self.backend.run_global(total - closed, closed)
            self._count("global", total - closed, closed, began)

    def _count(self, part: str, position: int, rows: int, began: float, calls: int = 1) -> None:
        self.stats.part_seconds[part] += perf_counter() - began
        self.stats.nfe[part] += calls
        self.stats.moved_bytes += calls * self.backend.moved_bytes(part, position, rows)
