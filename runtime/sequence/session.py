"""Holds one sequence in flight: its tokens, and how far each part of the model has read them.

Positions count tokens from BOS = 0. A token is *scored* when all parts have run on it in order, which yields the
distribution of the token after it. Which latent a row reads depends on scored tokens only (see `PatchTable`); nothing
depends on where the buffer happens to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import finalize

import numpy as np

from fastblt.models.config import BlockLatent
from fastblt.models.tokens import BOS_ID
from fastblt.runtime.backends.protocol import (
    MAX_ROWS,
    Backend,
    CapacityError,
    DecoderRows,
    Floats,
    Ids,
    Pick,
    Progress,
)
from fastblt.runtime.sequence.latents import Latents
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.parts import CountedParts
from fastblt.runtime.sequence.saved_session import SavedSession
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequence.token_buffer import TokenBuffer

#: Which latent the rows of a block read, see `BltConfig.block_latent`.
Latent = BlockLatent

_NO_BLOCK: Ids = np.empty(0, dtype=np.int64)


class Session:
    """Holds tokens, patches and progress over caches of its own; sessions of one backend know nothing of each other.

    One thread at a time may use a session. What a call returns may be views that the next one overwrites. Once a call
    has failed, every other raises ValueError until `clear`. The caches go with the session, or with `close`.

    Args:
        backend: its model runs; the session has a new sequence of it.
        stats: where calls are counted; None: new counters.
        learned: what methods have learned in earlier sessions; None: nothing.

    Raises:
        CapacityError: the backend has as many sequences as it can.
    """

    def __init__(self, backend: Backend, stats: RunStats | None = None, learned: Learned | None = None) -> None:
        self.backend = backend
        self.config = backend.config
        self.stats = stats if stats is not None else RunStats()
        self.learned = learned if learned is not None else Learned()
        self.sequence = backend.new_sequence()
        self._release = finalize(self, self.sequence.close)
        self._closed = False
        self._parts = CountedParts(self.sequence, self.config, self.stats)
        self._tokens = TokenBuffer(self.config, backend.max_bytes)
        self._latents = Latents(self.config, self._tokens, self._parts)
        self._patches = self._latents.patches
        self.scored = 0
        """Leading tokens that are scored."""
        self._block_latent = 0
        self.append([BOS_ID])

    def close(self) -> None:
        """Let go of the caches; closing again does nothing."""
        self._parts.failed = self._closed = True
        self._release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, ids: Ids, stats: RunStats) -> int:
        """Begin another text, and keep what its beginning shares with what was read before.

        Args:
            ids: int64 [n], n >= 1, BOS first; the last of them at least is left to score.
            stats: where calls are counted from now on.

        Returns:
            The leading tokens that need not be scored again.

        Raises:
            CapacityError: the text does not fit.
            ValueError: the session is closed.
        """
        self.stats = self._parts.stats = stats
        if self._parts.failed:
            self.clear()
        kept = min(self.shared_with(ids), len(ids) - 1)
        if not (kept and self._go_back(kept)):
            self.clear()
        self.append(ids[self.length :])
        return self.scored

    def shared_with(self, ids: Ids) -> int:
        """Return how many leading tokens of ``ids`` int64 [n] have been scored."""
        known = self._tokens.between(0, 0 if self._parts.failed else min(self.scored, len(ids)))
        differs = np.flatnonzero(known != ids[: len(known)])
        return int(differs[0]) if len(differs) else len(known)

    def spoil(self) -> None:
        """Note that what the session holds is not to be relied on: `begin` starts anew, any other call fails."""
        self._parts.failed = True

    @property
    def usable(self) -> bool:
        """Return whether no call has failed, and the session has not been spoiled or closed."""
        return not self._parts.failed

    def saved(self) -> SavedSession:
        """Return copies of all that is needed to go on in another session of the same model.

        Raises:
            ValueError: a call has failed.
        """
        if self._parts.failed:
            raise ValueError("session: found one in which a call has failed, expected one that can be saved")
        if self._patches.read_until > self.scored:
            self._patches.rewind(self.scored)
        progress = Progress(self.scored, self._patches.next_latent_start, self._patches.latents_ready)
        return SavedSession(self.tokens.copy(), tuple(self.patch_ends), progress, self.sequence.state(progress))

    def restore(self, saved: SavedSession) -> None:
        """Go on where another session of the same model was.

        Raises:
            CapacityError: the text does not fit.
            ValueError: something about it cannot be, or the session is closed.
            Exception: whatever the device reports. After any error the session holds nothing but BOS.
        """
        self.clear()
        self._tokens.length = 0
        try:
            self.append(saved.tokens)
            self._patches.restore(saved.patch_ends, saved.progress.tokens, saved.progress.patches)
            self.sequence.restore(saved.state, saved.progress)
        except BaseException:
            self.clear()
            raise
        if self._tokens.documents is not None:
            for patch in range(len(saved.patch_ends)):
                self._tokens.documents.close_patch(patch, self._patches.start_of(patch), saved.patch_ends[patch])
        self.scored = saved.progress.tokens

    def clear(self) -> None:
        """Forget everything but BOS, which is not scored any more; a failure is forgotten too.

        Raises:
            ValueError: the session is closed.
        """
        if self._closed:
            raise ValueError("session: found a closed one, expected one that is open")
        if self._parts.damaged:
            self._renew()
        self.sequence.reset()
        self._patches.clear()
        self._tokens.length, self.scored, self._parts.failed = 1, 0, False

    def _renew(self) -> None:
        """Exchange the sequence for a new one, whose caches are empty.

        Rows that are not to be seen are multiplied by 0, and that does not hide NaN: those that a failed call has left
        would spoil every later text.
        """
        self._release()
        self.sequence = self._parts.sequence = self.backend.new_sequence()
        self._release = finalize(self, self.sequence.close)
        self._parts.damaged = False

    @property
    def length(self) -> int:
        """Return the number of tokens."""
        return self._tokens.length

    @property
    def tokens(self) -> Ids:
        """Return the tokens, int64 [length]; a view."""
        return self._tokens.between(0, self._tokens.length)

    @property
    def patch_ends(self) -> list[int]:
        """Return the position after the last token of each closed patch."""
        return self._patches.ends

    @property
    def open_start(self) -> int:
        """Return the first position of the patch that is not closed."""
        return self._patches.open_start

    def append(self, tokens: Sequence[int] | Ids) -> None:
        """Put tokens at the end; they are not scored yet.

        Raises:
            CapacityError: they do not fit.
        """
        self._tokens.append(tokens)

    def rewind(self, length: int) -> None:
        """Forget the tokens from position ``length`` on; only lengths change, no cache is touched.

        Where the backend's caches no longer hold what the next rows see, the tokens that were scored are read again
        from the beginning.

        Raises:
            ValueError: ``length`` is not in 1..current length (BOS stays).
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"rewind: found length {length}, expected 1..{self.length}")
        if not self._go_back(length):
            self._start_over()

    def _go_back(self, length: int) -> bool:
        """Forget the tokens from position ``length`` on; return whether the caches hold what the next rows see."""
        self._tokens.length = length
        if self._patches.read_until <= length:
            return True
        self._patches.rewind(length)
        self.scored = min(self.scored, length)
        return self.sequence.can_resume_from(self.scored, self._patches.next_latent_start)

    def _start_over(self) -> None:
        """Score again what was scored, from the beginning."""
        length = self.length
        self._tokens.length, self.scored = self.scored, 0
        self._patches.clear()
        self.sequence.reset()
        if self.length:
            self.score()
        self._tokens.length = length

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
        that ends in the first part thus costs no global call, and an encoder call only where the decoder reads byte
        states. A single such row is not worth a call of its own: unless there is a draft decoder, the byte that it
        verifies was, as a rule, drafted from that very row.

        Yields:
            Rows of the tokens in order, at most `MAX_ROWS` in all; each part is overwritten by the next call.
        """
        self._check_unscored()
        first, end = self.scored, self.length
        if end - first > MAX_ROWS:
            raise ValueError(f"score_in_parts: found {end - first} tokens to score, expected at most {MAX_ROWS}")
        self._latents.read_patches(end)
        known = int(np.searchsorted(self._patches.latent_of[first:end], self._patches.latents_ready))
        if 1 < known < end - first:
            self._latents.encode_open(first, first + known)
            yield self._decode(first + known, _NO_BLOCK)
        self._latents.make(self.scored, end, partial=False)
        yield self._decode(end, _NO_BLOCK)

    def score_with_block(self, block: Ids, latent: Latent) -> tuple[DecoderRows, DecoderRows]:
        """Score, and denoise a block after the last token, in the same decoder call unless a draft decoder does it.

        Args:
            block: int64 [size], MASK_ID where a byte is not decided. Nothing of it is committed.
            latent: which one the block's rows read, here and in later calls of `denoise`.

        Returns:
            Rows of the tokens that were not scored, as `score` returns them, and of the block; block row i is about
            the block's own byte i. Both are overwritten by the next call.
        """
        self._check_block(block)
        rows = self._score(block, latent)
        return rows.part(0, -len(block)), rows.part(-len(block))

    def draft_with_block(self, block: Ids) -> tuple[DecoderRows, DecoderRows]:
        """Denoise a block by one decoder alone: it also reads the last token, which stays unscored.

        Where there is a draft decoder, it decodes the last token's row, too, which verification then overwrites. All
        rows read the newest closed latent, so no other part has to run.

        Returns:
            The row of the last token (about the block's first byte), and the block's.
        """
        position = self._check_draft(len(block))
        self._check_block(block)
        self._block_latent = self._latents.newest
        rows = self._run_block(position, np.concatenate([self.tokens[-1:], block]), len(block))
        return rows.part(0, 1), rows.part(1)

    def denoise(self, block: Ids) -> DecoderRows:
        """Run a block again, after `score_with_block` or `draft_with_block`, with some of its bytes decided."""
        return self._run_block(self.length, block, len(block))

    def draft(self, count: int, pick: Pick | None = None, latent: Latent = "closed") -> tuple[Ids, Floats]:
        """Continue by the decoder: all rows read the newest latent, patches are ignored.

        The last token must be the only one that is not scored. Nothing is committed.

        Args:
            count: most bytes.
            pick: chooses each byte and whether another one follows; None: greedy, ``count`` bytes.
            latent: ``closed``: the newest that exists; ``partial``: that of the open patch up to the last token, which
                encoder and global transformer make first.

        Returns:
            Tokens int64 [n] and the probabilities float32 [n] of the rows' most likely tokens.
        """
        position = self._check_draft(count)
        context, documents = self._tokens.with_history(position, position + 1), self._tokens.documents
        seen = 0 if documents is None else int(documents.first_byte[position])
        read = self._latents.newest if latent == "closed" else self._latents.update(position, self.length, latent)
        drafted = self._parts.draft(position, context, read, count, pick, seen)
        return drafted.tokens, drafted.probabilities

    def _check_draft(self, count: int) -> int:
        """Return the position of the last token; raise unless a draft of ``count`` bytes can follow it."""
        position = self.length - 1
        # A row reads the byte before the one it predicts: the first has the position of the last token.
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
        room = self._tokens.capacity - first
        if count > room:
            raise CapacityError(
                f"{what}: found {count} bytes after position {self.length - 1}, expected at most {room}"
            )

    def _check_unscored(self) -> None:
        if self.scored == self.length:
            raise ValueError("score: found no token to score, append one first")

    def score_piece(self) -> bool:
        """Score the next `MAX_ROWS` tokens, if that leaves one at least for `score`; return whether it did."""
        if self.length - self.scored <= MAX_ROWS:
            return False
        self._score_piece(self.scored + MAX_ROWS, _NO_BLOCK, "closed")
        return True

    def _score(self, block: Ids, latent: Latent) -> DecoderRows:
        self._check_unscored()
        while self.score_piece():
            pass
        return self._score_piece(self.length, block, latent)

    def _score_piece(self, end: int, block: Ids, latent: Latent) -> DecoderRows:
        """Run all parts on the unscored tokens before ``end``, and the decoder on a block after them."""
        self._block_latent = self._latents.update(self.scored, end, latent)
        return self._decode(end, block)

    def _decode(self, end: int, block: Ids) -> DecoderRows:
        """Run the decoder on the tokens from the first that is not scored to ``end``, and on a block after them."""
        first = self.scored
        ids, latents = self._tokens.between(first, end), self._patches.latent_of[first:end]
        if len(block) and self.config.has_draft:
            clean = self._run_decoder(first, ids, latents, 0).copy()
            self.scored = end
            return clean.followed_by(self._run_block(end, block, len(block)))
        if len(block):
            ids = np.concatenate([ids, block])
            latents = np.concatenate([latents, np.full(len(block), self._block_latent)])
        rows = self._run_decoder(first, ids, latents, len(block))
        self.scored = end
        return rows

    def _run_block(self, position: int, ids: Ids, block: int) -> DecoderRows:
        """Run the decoder on rows that all read the block's latent; the last ``block`` of them are the block."""
        return self._run_decoder(position, ids, np.full(len(ids), self._block_latent), block)

    def _run_decoder(self, position: int, ids: Ids, latents: Ids, block: int) -> DecoderRows:
        seen = self._tokens.visible_from(position, position + len(ids) - block, block)
        return self._parts.run_decoder(position, ids, latents, block, seen)
