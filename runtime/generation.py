"""Generates as a Python iterator: rounds of a method become chunks of bytes, until a rule ends them."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import numpy as np

from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE, decode, encode
from fastblt.runtime.backends.protocol import MAX_ROWS, Ids
from fastblt.runtime.methods import Method, MethodError, Origin, Round, steps_of
from fastblt.runtime.request import StopRules
from fastblt.runtime.sequence.lease import Lease
from fastblt.runtime.sequence.requests import ScoreRequest, Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.stop_strings import StopSearch
from fastblt.runtime.text import TextDecoder
from fastblt.runtime.turns import BusyError

#: What a generation continues: bytes, text (UTF-8), or token ids, int64 [n], BOS first.
Prompt = bytes | str | Ids


class Chunk(NamedTuple):
    """New bytes, in the order in which they are decided."""

    data: bytes
    """New bytes."""
    origins: tuple[Origin, ...]
    """How each of them came about."""
    rejected: bytes
    """Drafted bytes that verification threw away; they were where the corrected byte and what follows it are now."""
    boundaries: tuple[int, ...]
    """Offsets into the new text (0 = first new byte) of bytes now known to be the last of their patch; negative
    ones are in the prompt. Whether the last byte of a chunk ends a patch is reported with the next chunk."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of the probability of each byte given everything before it, by the model's own distribution:
    before bias, temperature and truncation. Empty unless the request asks for it. Exact for lossless methods; for
    ``d``, it is the probability in the row that decided the byte, when other bytes of its block, on either side, may
    have been undecided."""


#: What is new after a piece of a prompt.
_NOTHING = Chunk(b"", (), b"", ())


@dataclass(frozen=True)
class Generation:
    """Holds a finished generation; ``bytes(generation)`` is its data, ``str(generation)`` its text."""

    data: bytes
    """New bytes; a stop string is not part of them."""
    finish: str
    """Why it ended: ``length``, ``stop`` (a stop string) or ``eos``."""
    stats: RunStats
    tokens: tuple[int, ...]
    """New token ids, those without a byte too: EOS is the last where it ended the generation."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each byte of ``data``, see `Chunk.logprobs`; empty unless the request asks for it."""

    @property
    def text(self) -> str:
        """Return the new bytes as UTF-8, invalid ones replaced by U+FFFD."""
        return self.data.decode("utf-8", errors="replace")

    def __bytes__(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.text


class ByteStream(Iterator[Chunk]):
    """Runs a method over a session and yields chunks; afterwards `finish` reports why it ended.

    Bytes that may be the beginning of a stop string are held back until that is decided. A stream is a context manager
    that closes itself. Threads may share one: each chunk goes to one of them, and they wait for each other.

    Args:
        lease: of the session, which is given back at the end.
        ids: int64 [n], the text to continue, BOS first.
        method: decides the new bytes.
        sampler: draws them.
        rules: when to stop.
        started: when the call began, in seconds of `time.perf_counter`.
    """

    def __init__(
        self, lease: Lease, ids: Ids, method: Method, sampler: Sampler, rules: StopRules, started: float
    ) -> None:
        self._lease = lease
        # Neither of the two refers to the stream, which is thus gone when nobody refers to it any more.
        self.growing = GrowingText(lease.session, ids, method, sampler, rules, started)
        self._steps = self.growing.steps()
        self._round = threading.RLock()
        self._stepping = False
        """Whether a step has begun and not ended."""
        self._closing = False
        """Whether no other round begins."""
        self._cut = False
        """Whether the text will never reach its end."""
        if self.growing.ended:
            lease.release()

    @property
    def open(self) -> bool:
        """Return whether there may be another chunk; as long as there may, it has a sequence of the runtime."""
        return not (self._cut or self.growing.ended)

    @property
    def stats(self) -> RunStats:
        """Return the counters of this generation."""
        return self.growing.stats

    @property
    def finish(self) -> str:
        """Return why the generation ended: ``length``, ``stop``, ``eos``, or ``closed``.

        The last is so if it was closed, or an error was raised, before its end.
        """
        return "closed" if self._cut else self.growing.finish

    @property
    def tokens(self) -> list[int]:
        """Return the new token ids that are decided, those of bytes held back too; see `Generation.tokens`."""
        return self.growing.tokens

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._round:
            while (chunk := self.step()) is not None:
                if chunk.data or chunk.boundaries or chunk.rejected:
                    return chunk
            raise StopIteration

    def step(self) -> Chunk | None:
        """Read a piece of the prompt, at most `MAX_ROWS` bytes of it, or run one round of the method.

        Who serves many streams gives each of them a step in turn: none waits longer than the steps of the others take.

        Returns:
            What is new; nothing is in it while the prompt is read, or bytes are held back. None after the end.

        Raises:
            BusyError: it is called from inside its own step.
            GraphError: a graph fails.
            ValueError: the stream was closed before its end.
        """
        return self._lease.session.run(self.requests())

    def requests(self) -> Steps[Chunk | None]:
        """Return what `step` asks of the session, for whoever answers it together with the steps of other streams.

        The thread that begins with it must bring it to its end; until then the stream waits for it.
        """
        with self._round:
            if self._stepping:  # in this thread, since the lock is its own
                raise BusyError("stream: found a call from inside its own round, expected one after the other")
            if self._closing and (self._cut or not self.growing.ended):
                raise ValueError("stream: closed before its end, expected an open one; call stream() again")
            try:
                self._stepping = True
                steps = next(self._steps, None)
                chunk = None if steps is None else (yield from steps)
                if self._closing:
                    self._cut = not self.growing.ended
                if self.growing.ended or self._cut:
                    self._lease.release()
            except BaseException:
                # Asking again would look like an end, or leave out the chunk that was not returned.
                self._closing = self._cut = self.growing.failed = True
                if self._lease.held:  # otherwise the session may be another text's by now
                    self._lease.session.spoil()
                self._lease.release()
                raise
            finally:
                self._stepping = False
            return chunk

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the generation and give the sequence back.

        Afterwards, asking for a chunk raises ValueError if the generation had not ended. Closing again does nothing. A
        round that another thread is computing is waited for; its chunk is still returned there.
        """
        self._closing = True
        with self._round:
            if self._stepping:
                return  # from inside a round, by a signal handler: it is the last one
            self._cut = self._cut or not self.growing.ended
            try:
                self._lease.leave_batch()
            finally:
                try:
                    self._steps.close()  # a method of another package may raise
                finally:
                    self._lease.held = False
            self._lease.release()

    def text(self) -> Iterator[str]:
        """Yield the text in pieces of whole characters; bytes that are not UTF-8 are replaced by U+FFFD.

        It consumes the stream's chunks: joined, the pieces are the `Generation.text` of the same request.
        """
        decoder = TextDecoder()
        for chunk in self:
            if piece := decoder.decode(chunk.data):
                yield piece
        if piece := decoder.finish():
            yield piece


class GrowingText:
    """Grows a text round by round: takes the bytes of a method until a rule ends the generation."""

    def __init__(
        self, session: Session, ids: Ids, method: Method, sampler: Sampler, rules: StopRules, started: float
    ) -> None:
        self.session = session
        self.ids = ids
        self.method = method
        self.sampler = sampler
        self.rules = rules
        self.stats = RunStats(prompt_bytes=len(ids) - 1)
        self.finish = "length"
        self.tokens: list[int] = []
        self.failed = False
        """Whether an error ended it."""
        self.ended = rules.max_new_bytes == 0
        self._started = started
        self._stops = StopSearch(rules.strings) if rules.strings else None
        self._data = bytearray()
        self._origins: list[Origin] = []
        self._logprobs: list[float] = []
        self._emitted = 0
        self._boundaries_seen = 0
        self._boundaries: list[int] = []
        # New byte offset of each token position; a token without a byte shares the offset of the byte before it.
        self._offsets: list[int] = []
        self._first_position = len(ids)

    def steps(self) -> Generator[Steps[Chunk], None, None]:
        """Yield steps: the prompt is read piece by piece, then the method runs until a rule ends the generation."""
        if self.ended:
            return
        self.stats.reused_bytes = max(0, self.session.begin(self.ids, self.stats) - 1)
        while self.session.has_piece:
            yield self._read_piece()
        for steps in steps_of(self.method, self.session, self.sampler):
            yield self._grow(steps)
            if self.ended:
                return
        self.ended = True

    def _read_piece(self) -> Steps[Chunk]:
        yield ScoreRequest(most=MAX_ROWS)
        return _NOTHING

    def _grow(self, steps: Steps[Round]) -> Steps[Chunk]:
        """Run a round, and return its chunk."""
        before = time.perf_counter()
        step = yield from steps
        known = len(self._offsets)
        seconds = time.perf_counter() - before
        self.ended = self._take(step)
        self._count(step, seconds, known)
        return self._emit(step)

    def known(self) -> Ids:
        """Return the tokens of the text as far as its consumer knows it, int64 [n], BOS first.

        Bytes that are held back are not among them, nor is the EOS that ended the generation.
        """
        new = self.tokens[: bisect_left(self._offsets, self._emitted)]
        return np.concatenate([self.ids, np.array(new, dtype=np.int64)])

    def _count(self, step: Round, seconds: float, known: int) -> None:
        """Add a round to the counters; ``known`` tokens had been taken before it."""
        stats = self.stats
        stats.rounds += 1
        stats.drafted += step.drafted
        stats.forced += step.origins.count("forced")
        stats.accepted += step.accepted
        stats.total_seconds = time.perf_counter() - self._started
        if known == 0:
            stats.first_byte_seconds = stats.total_seconds
        else:
            stats.byte_seconds += [seconds / len(step.tokens)] * (len(self._offsets) - known)

    def _take(self, step: Round) -> bool:
        """Append a round's bytes, and return whether the generation has ended."""
        with_logprobs = self.sampler.logprobs
        if with_logprobs and len(step.logprobs) != len(step.tokens):
            raise MethodError(
                f"method {self.method.name!r}: found {len(step.logprobs)} log-probabilities of {len(step.tokens)} "
                "tokens, expected one per token; the method does not report them"
            )
        for index, (token, origin) in enumerate(zip(step.tokens, step.origins, strict=True)):
            self.tokens.append(token)
            if token == EOS_ID and self.rules.at_eos:
                self.finish = "eos"
                return True
            if token >= BYTE_OFFSET:
                self._data.append(token - BYTE_OFFSET)
                self._origins.append(origin)
                if with_logprobs:
                    self._logprobs.append(step.logprobs[index])
            self._offsets.append(len(self._data) - 1)
            if self._stops and token >= BYTE_OFFSET and (length := self._stops.read(token - BYTE_OFFSET)):
                stop = len(self._data) - length
                del self._data[stop:], self._origins[stop:], self._logprobs[stop:]
                del self.tokens[bisect_left(self._offsets, stop) :]
                self.finish = "stop"
                return True
            # Tokens, not bytes: a model that yields special tokens without end ends too.
            if len(self._offsets) == self.rules.max_new_bytes:
                return True
        return False

    def _emit(self, step: Round) -> Chunk:
        """Return the chunk of a round that has been taken."""
        held_back = self._stops.held_back if self._stops and not self.ended else 0
        end = len(self._data) - held_back
        begin, self._emitted = self._emitted, max(end, self._emitted)
        self.stats.new_bytes = self._emitted
        return Chunk(
            bytes(self._data[begin:end]),
            tuple(self._origins[begin:end]),
            decode(list(step.rejected)) if step.rejected else b"",
            self._new_boundaries(),
            tuple(self._logprobs[begin:end]),
        )

    def _new_boundaries(self) -> tuple[int, ...]:
        """Return boundaries that became known, of bytes that have been emitted; those of bytes held back wait."""
        ends = self.session.patch_ends
        if len(ends) != self._boundaries_seen:
            for end in ends[self._boundaries_seen :]:
                index = end - 1 - self._first_position
                if index < len(self._offsets):
                    self._boundaries.append(self._offsets[index] if index >= 0 else index)
            self._boundaries_seen = len(ends)
        if not self._boundaries:
            return ()
        shown = tuple(b for b in self._boundaries if b < self._emitted)
        self._boundaries = [b for b in self._boundaries if b >= self._emitted]
        return shown


def prompt_ids(prompt: Prompt) -> Ids:
    """Return the token ids of a prompt after its BOS, which a session begins with.

    Args:
        prompt: bytes, text, or token ids; special ids may be anywhere among them.

    Returns:
        int64 [n].

    Raises:
        ValueError: it is none of these, or the ids are not integers [n], do not begin with BOS, or one of them is
            outside the vocabulary.
    """
    if isinstance(prompt, str | bytes):
        return encode(prompt, bos=False)
    ids = np.asarray(prompt)
    if ids.ndim == 0 or isinstance(prompt, bytearray | memoryview):
        raise ValueError(f"prompt: found {type(prompt).__name__}, expected bytes, text, or token ids [n]")
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"prompt ids: found {ids.dtype} {list(ids.shape)}, expected integers [n]")
    if not len(ids) or ids[0] != BOS_ID:
        found = f"first id {ids[0]}" if len(ids) else "no id"
        raise ValueError(f"prompt ids: found {found}, expected {BOS_ID} (BOS) first")
    wrong = ids[(ids < 0) | (ids >= VOCAB_SIZE)]
    if len(wrong):
        raise ValueError(
            f"prompt ids: found {wrong[0]}, expected ids in 0..{VOCAB_SIZE - 1} (byte b is {BYTE_OFFSET} + b)"
        )
    return ids[1:].astype(np.int64)
