"""Generates and scores texts: what a runtime and a sequence offer alike."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from fastblt.models.tokens import BOS_ID, decode, encode
from fastblt.runtime.backends.protocol import CapacityError, Ids
from fastblt.runtime.generation import ByteStream, Chunk, Generation, Prompt, prompt_ids
from fastblt.runtime.methods import Method
from fastblt.runtime.request import GenerationOptions, GenerationRequest, StopRules
from fastblt.runtime.sequence.likelihood import Score, score_tokens
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequences.pool import Conversation, SequencePool

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

T = TypeVar("T")
#: The beginning of every text, int64 [1].
ONLY_BOS: Ids = np.array([BOS_ID], dtype=np.int64)


class _Wanted(NamedTuple):
    """Holds the checked arguments of a generation."""

    ids: Ids
    """int64 [n], the prompt without BOS."""
    method: Method
    sampler: Sampler
    rules: StopRules


class TextMaker(ABC):
    """Generates and scores texts; what it continues, and whose turn it is, are a subclass's.

    Args:
        pool: lends the sessions.
    """

    def __init__(self, pool: SequencePool) -> None:
        self.backend = pool.backend
        self._pool = pool

    @abstractmethod
    def _before(self) -> Ids:
        """Return the text that a prompt is appended to, int64 [n], BOS first."""

    @abstractmethod
    def _owner(self) -> Conversation | None:
        """Return whose text it is; None: nobody's."""

    @abstractmethod
    def _open(self, make: Callable[[], ByteStream]) -> ByteStream:
        """Make a stream when it is its turn."""

    @abstractmethod
    def _whole(self, make: Callable[[], ByteStream], read: Callable[[ByteStream], T]) -> T:
        """Make a stream when it is its turn, and read it to its end."""

    @abstractmethod
    def _call(self, work: Callable[[], T]) -> T:
        """Work when it is its turn."""

    def stream(
        self,
        prompt: Prompt,
        max_new_bytes: int | None = None,
        *,
        request: GenerationRequest | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ByteStream:
        """Start to generate, and return the iterator of chunks; arguments and errors are those of `generate`.

        Nothing is computed before the first chunk is asked for. Afterwards the stream's ``finish`` and ``stats`` report
        why it ended and what it cost. It has a place in memory until it has ended, is closed, or nobody refers to it;
        see `BltRuntime`.
        """
        wanted = self._check(prompt, max_new_bytes, request, options)
        return self._open(lambda: self._start(wanted, stream=True))

    def generate(
        self,
        prompt: Prompt,
        max_new_bytes: int | None = None,
        *,
        request: GenerationRequest | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Generate up to ``max_new_bytes`` bytes after a prompt.

        Args:
            prompt: any bytes, or text (UTF-8); may be empty. Or token ids, int64 [n], BOS first. A sequence appends it
                to its text.
            max_new_bytes: as in `GenerationRequest`; None: the request's, or its default.
            request: what to generate; None: `GenerationRequest`'s defaults.
            on_chunk: called with each chunk.
            options: fields of `GenerationRequest`; they replace the request's.

        Raises:
            BusyError: no place can become free, see `BltRuntime`; or a stream of the sequence is open.
            CapacityError: text, prompt and new bytes exceed ``max_bytes``.
            GraphError: a graph fails while it runs; the runtime can be used again unless the error denies it.
            MethodError: unknown method, or one that this model cannot run.
            SamplingError: a parameter of sampling is out of range.
            TypeError: an option that does not exist.
            ValueError: negative ``max_new_bytes``, an empty stop string, ids that are no prompt, or a sequence that has
                been closed.
        """

        def read(stream: ByteStream) -> Generation:
            pieces: list[bytes] = []
            logprobs: list[float] = []
            for chunk in stream:
                pieces.append(chunk.data)
                logprobs += chunk.logprobs
                if on_chunk:
                    on_chunk(chunk)
            return Generation(b"".join(pieces), stream.finish, stream.stats, tuple(stream.tokens), tuple(logprobs))

        return self.generate_into(read, prompt, max_new_bytes, request=request, **options)

    def generate_into(
        self,
        read: Callable[[ByteStream], T],
        prompt: Prompt,
        max_new_bytes: int | None = None,
        *,
        request: GenerationRequest | None = None,
        **options: Unpack[GenerationOptions],
    ) -> T:
        """Generate as `generate` does, for a function that reads the stream to its end; return what it returns."""
        wanted = self._check(prompt, max_new_bytes, request, options)
        return self._whole(lambda: self._start(wanted, stream=False), read)

    def score(self, prompt: Prompt, continuation: bytes | str) -> Score:
        """Return how likely each byte of a continuation is, given the prompt and the bytes before it.

        The model reads the given text; nothing is drafted, so the figures are the model's own. A runtime reads it from
        its beginning: the last bits of a row depend on how many are computed together, and the figures should not
        depend on earlier texts. The text of a sequence comes before the prompt, and stays what it is.

        Args:
            prompt: any bytes, or text (UTF-8); may be empty. Or token ids, int64 [n], BOS first.
            continuation: any bytes, or text (UTF-8); may be empty.

        Raises:
            BusyError: see `generate`.
            CapacityError: text, prompt and continuation exceed ``max_bytes``.
            GraphError: see `generate`.
            ValueError: ids that are no prompt, a continuation that is neither bytes nor text, or a sequence that has
                been closed.
        """
        if not isinstance(continuation, str | bytes):
            raise ValueError(f"continuation: found {type(continuation).__name__}, expected bytes or text")
        before, after = prompt_ids(prompt), encode(continuation, bos=False)
        return self._call(lambda: self._score(before, after))

    def _check(
        self,
        prompt: Prompt,
        max_new_bytes: int | None,
        request: GenerationRequest | None,
        options: GenerationOptions,
    ) -> _Wanted:
        """Return the arguments of `generate`, checked as far as they do not depend on what comes before."""
        wanted = _request(max_new_bytes, request, options)
        method = wanted.decoding_method()
        method.check(self.backend.config)
        return _Wanted(prompt_ids(prompt), method, wanted.sampler(), wanted.stop_rules())

    def _start(self, wanted: _Wanted, *, stream: bool, together: bool = False) -> ByteStream:
        """Take a place for a text, as `SequencePool.lease` does, and return what grows it."""
        started = time.perf_counter()
        text = self._whole_text(wanted)
        lease = self._pool.lease(text, self._owner(), stream=stream, together=together)
        try:
            return ByteStream(lease, text, wanted.method, wanted.sampler, wanted.rules, started)
        except BaseException:
            lease.held = False  # the traceback refers to it
            raise

    def _whole_text(self, wanted: _Wanted) -> Ids:
        """Return the text that a generation continues, int64 [n]; raise `CapacityError` where it has no room."""
        return self._with_prompt(wanted.ids, wanted.rules.max_new_bytes, "max_new_bytes=")

    def _score(self, before: Ids, after: Ids) -> Score:
        """Return how likely the tokens ``after`` are."""
        text = self._with_prompt(before, len(after), "a continuation of ")
        read = text[: max(1, len(text) - 1)]  # the row of the last one is the first that is wanted
        owner = self._owner()

        def scored(session: Session) -> Score:
            if owner is None:
                session.spoil()
            session.begin(read, RunStats())
            best: list[Ids] = [np.empty(0, dtype=np.int64)]
            ids = np.concatenate([text, after])
            logprobs = score_tokens(session, ids, len(text), lambda rows: best.append(rows.best.copy()))
            return Score(decode(after), logprobs, np.concatenate(best) == after)

        return self._pool.lease(text[:1] if owner is None else read, owner).use(scored)

    def _with_prompt(self, ids: Ids, more: int, what: str) -> Ids:
        """Return the text with a prompt after it, int64 [n]; ``more`` bytes, named by ``what``, are to follow.

        Raises:
            CapacityError: there is no room for them.
        """
        before = self._before()
        found, most = len(before) - 1 + len(ids), self.backend.max_bytes
        if found + more > most:
            prompt = "prompt" if len(before) == 1 else "text and prompt"
            raise CapacityError(
                f"{prompt}: found {found} bytes and {what}{more}, expected at most max_bytes={most} in all"
            )
        return np.concatenate([before, ids])


def _request(
    max_new_bytes: int | None, request: GenerationRequest | None, options: GenerationOptions
) -> GenerationRequest:
    """Return the request that the arguments of `TextMaker.generate` describe."""
    if request is None:
        return GenerationRequest(**options) if max_new_bytes is None else GenerationRequest(max_new_bytes, **options)
    if not isinstance(request, GenerationRequest):
        raise ValueError(f"request: found {type(request).__name__}, expected a GenerationRequest")
    return (
        replace(request, **options)
        if max_new_bytes is None
        else replace(request, max_new_bytes=max_new_bytes, **options)
    )
