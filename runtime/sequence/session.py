"""Holds one sequence in flight: its tokens, and how far each part of the model has read them.

Positions count tokens from BOS = 0. A token is *scored* when all parts have run on it in order, which yields the
distribution of the token after it. Which latent a row reads depends on scored tokens only (see `PatchTable`); nothing
depends on where the buffer happens to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar, cast
from weakref import finalize

import numpy as np

from fastblt.models.tokens import BOS_ID
from fastblt.runtime.backends.protocol import MAX_ROWS, Backend, DecoderRows, Ids, Progress
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.parts import Calls, CountedParts
from fastblt.runtime.sequence.reader import Reader
from fastblt.runtime.sequence.requests import Latent, Request, ScoreRequest, Steps
from fastblt.runtime.sequence.saved_session import SavedSession
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequence.token_buffer import TokenBuffer

__all__ = ["Latent", "Session"]
T = TypeVar("T")


def stay_alone() -> None:
    """Do nothing: a session is in no batch."""


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
        self.parts = CountedParts(self.sequence, self.config, self.stats)
        """Makes the calls that `calls` asks for, and counts them."""
        self.waited = 0.0
        """Seconds that passed while other sequences used a batch, see `now`."""
        self.leave_batch: Callable[[], None] = stay_alone
        """Takes the sequence out of the batch that it is in, by the thread that runs the batch."""
        self._tokens = TokenBuffer(self.config, backend.max_bytes)
        self._reader = Reader(self.config, self._tokens)
        self._patches = self._reader.patches
        self.append([BOS_ID])

    def close(self) -> None:
        """Let go of the caches; closing again does nothing."""
        self.parts.failed = self._closed = True
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
        self.stats = self.parts.stats = stats
        if self.parts.failed:
            self.clear()
        kept = min(self.shared_with(ids), len(ids) - 1)
        if not (kept and self._go_back(kept)):
            self.clear()
        self.append(ids[self.length :])
        return self.scored

    def shared_with(self, ids: Ids) -> int:
        """Return how many leading tokens of ``ids`` int64 [n] have been scored."""
        known = self._tokens.between(0, 0 if self.parts.failed else min(self.scored, len(ids)))
        differs = np.flatnonzero(known != ids[: len(known)])
        return int(differs[0]) if len(differs) else len(known)

    def spoil(self) -> None:
        """Note that what the session holds is not to be relied on: `begin` starts anew, any other call fails."""
        self.parts.failed = True

    @property
    def usable(self) -> bool:
        """Return whether no call has failed, and the session has not been spoiled or closed."""
        return not self.parts.failed

    def saved(self) -> SavedSession:
        """Return copies of all that is needed to go on in another session of the same model.

        Raises:
            ValueError: a call has failed.
        """
        if self.parts.failed:
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
        self._reader.scored = saved.progress.tokens

    def clear(self) -> None:
        """Forget everything but BOS, which is not scored any more; a failure is forgotten too.

        Raises:
            ValueError: the session is closed.
        """
        if self._closed:
            raise ValueError("session: found a closed one, expected one that is open")
        if self.parts.damaged:
            self._renew()
        self.sequence.reset()
        self._patches.clear()
        self._tokens.length, self._reader.scored, self.parts.failed = 1, 0, False

    def _renew(self) -> None:
        """Exchange the sequence for a new one, whose caches are empty.

        Rows that are not to be seen are multiplied by 0, and that does not hide NaN: those that a failed call has left
        would spoil every later text.
        """
        self._release()
        self.sequence = self.parts.sequence = self.backend.new_sequence()
        self._release = finalize(self, self.sequence.close)
        self.parts.damaged = False

    @property
    def scored(self) -> int:
        """Return the number of leading tokens that are scored."""
        return self._reader.scored

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
        self._reader.scored = min(self.scored, length)
        return self.sequence.can_resume_from(self.scored, self._patches.next_latent_start)

    def _start_over(self) -> None:
        """Score again what was scored, from the beginning."""
        length = self.length
        self._tokens.length, self._reader.scored = self.scored, 0
        self._patches.clear()
        self.sequence.reset()
        if self.length:
            self.score()
        self._tokens.length = length

    def run(self, steps: Steps[T]) -> T:
        """Answer the requests of a method one after the other, and return what comes of it."""
        try:
            request = next(steps)
            while True:
                try:
                    answer = self.answer(request)
                except BaseException as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            steps.close()  # an interrupt between two requests would leave it waiting for an answer

    def answer(self, request: Request) -> Any:
        """Make the calls that a request needs, and return its answer.

        Raises:
            CapacityError: a block or draft does not fit.
            GraphError: a graph fails.
            ValueError: it cannot be asked for now.
        """
        return self.parts.run(self.calls(request))

    def calls(self, request: Request) -> Calls[Any]:
        """Return the calls that a request needs, for whoever makes them together with those of other sequences.

        Each is to be followed by `CountedParts.take`; if it fails, by `CountedParts.spoil`.
        """
        self.parts.check_usable()
        return self._reader.calls(request)

    def score(self) -> DecoderRows:
        """Answer `requests.ScoreRequest` for work below the level of methods."""
        rows: DecoderRows = self.answer(ScoreRequest())
        return rows

    @property
    def has_piece(self) -> bool:
        """Return whether a piece of `MAX_ROWS` tokens can be scored that leaves one at least."""
        return self.length - self.scored > MAX_ROWS

    def now(self) -> float:
        """Return the seconds of a clock that stands still while other sequences are served in the same batch."""
        return perf_counter() - self.waited
