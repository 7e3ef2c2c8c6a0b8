"""Loads a bundle and generates bytes: the runtime's front door."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID, decode, encode
from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.backends.registry import load_backend
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.generation import ByteStream, Chunk, Generation, Prompt, prompt_ids
from fastblt.runtime.progress import OnProgress, no_progress
from fastblt.runtime.request import GenerationOptions, GenerationRequest
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.likelihood import Score, score_tokens
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequences.pool import PoolStats, SequencePool

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

T = TypeVar("T")
_ONLY_BOS = np.array([BOS_ID], dtype=np.int64)


class BltRuntime:
    """Holds a loaded model and its sequences, in which texts grow at the same time, on any number of threads.

    A sequence has buffers that are allocated once, for ``max_bytes``; there are at most `sequences` of them. A text has
    one until its call returns, or its stream has ended, is closed, or nobody refers to it. When all are taken,
    `generate` and `score` wait for calls of other threads; where none would ever be free (streams are open, or the call
    comes from inside another one, e.g. from ``on_chunk``) they and `stream` raise `BusyError` immediately. A text that
    begins as an earlier one did is not read again as far as they agree (`fastblt.runtime.sequences.pool`).

    Args:
        backend: the loaded model.
        reuse_prompts: whether what has been read for one text may be used for another. On a CPU the bytes are the same
            either way; what changes is how long the first one takes.
    """

    def __init__(self, backend: Backend, *, reuse_prompts: bool = True) -> None:
        self.backend = backend
        self._pool = SequencePool(backend, Learned(), reuse=reuse_prompts)

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        provider: str = "auto",
        backend: str = "onnxruntime",
        max_bytes: int = 4096,
        threads: int | None = None,
        sequences: int | None = None,
        reuse_prompts: bool = True,
        check_values: bool = False,
        row_floor: int = 1,
        warm_up: bool = True,
        on_progress: OnProgress = no_progress,
    ) -> BltRuntime:
        """Load a bundle that ``fastblt export`` wrote.

        Args:
            bundle: its folder; every file is compared with the size and sha256 in the manifest.
            provider: ``cpu``, ``cuda``, ``tensorrt`` (ONNX Runtime's provider for TensorRT 10), or ``auto`` (the CPU
                until an audit has passed on a GPU; engines: the GPU).
            backend: ``onnxruntime``; ``tensorrt`` or ``tensorrt-rtx`` (engines that ``fastblt compile`` made); or
                ``eager`` (PyTorch, needs the ``export`` extra).
            max_bytes: longest prompt plus new bytes.
            threads: threads of one operator; None: one for models that fit the processor's caches, else all cores.
            sequences: most texts at once, each of which takes memory (`sequence_bytes`); None: on a CPU as many as fit
                half of the memory that weights leave, up to 64; on a GPU, where they are prepared when the model is
                loaded, one.
            reuse_prompts: see the class.
            check_values: read all embedding tables on the host, and refuse NaN and infinities. ``fastblt export``
                writes none; every byte of a table is read once, so large ones take seconds.
            row_floor: fewest rows of a call on a GPU, a power of two up to 64; shorter calls are padded. With 16, one
                byte and the bytes of a draft are computed by the same kernels.
            warm_up: on a GPU, bind, compile and record all that generations can need now, not while a text grows.
            on_progress: called during that; see `fastblt.runtime.progress`.

        Raises:
            BundleError: a file is missing, damaged or not what the manifest describes.
            ProviderError: the provider cannot be used here.
            TensorRtError: TensorRT is missing or of a version that is not supported.
            CudaError: there is no usable GPU, or cuda-python is missing.
            CapacityError: the machine, or the GPU, has too little memory for so many sequences.
            ValueError: unknown backend or provider, or ``max_bytes``, ``threads``, ``sequences`` or ``row_floor`` out
                of range.
        """
        request = LoadRequest(
            Path(bundle),
            provider,
            max_bytes,
            threads,
            sequences,
            row_floor=row_floor,
            warm_up=warm_up,
            on_progress=on_progress,
        )
        if check_values:
            Bundle.open(bundle, check=False).check_values()
        return cls(load_backend(backend, request), reuse_prompts=reuse_prompts)

    @property
    def device(self) -> str:
        """Return ``cpu`` or ``cuda``."""
        return self.backend.device

    @property
    def config(self) -> BltConfig:
        """Return the model's configuration."""
        return self.backend.config

    @property
    def sequences(self) -> int:
        """Return how many texts can grow at once."""
        return self.backend.sequences

    @property
    def sequences_in_use(self) -> int:
        """Return how many texts have a sequence at the moment."""
        return self._pool.in_use

    @property
    def sequence_bytes(self) -> int:
        """Return the bytes of memory that a sequence takes at most."""
        return self.backend.sequence_bytes

    @property
    def pool_stats(self) -> PoolStats:
        """Return what became of the texts so far: how many were reused, evicted, saved."""
        return replace(self._pool.stats)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session that holds nothing but BOS, for work below the level of `generate`; it waits as that does.

        Raises:
            BusyError: see the class.
        """
        lease = self._pool.lease(_ONLY_BOS)
        try:
            lease.session.begin(_ONLY_BOS, RunStats())
            yield lease.session
        finally:
            lease.session.spoil()
            lease.release()

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
        why it ended and what it cost. It has a sequence until it has ended, is closed, or nobody refers to it; see the
        class.
        """
        return self._prepare(prompt, max_new_bytes, request, options)(stream=True)

    def _prepare(
        self,
        prompt: Prompt,
        max_new_bytes: int | None,
        request: GenerationRequest | None,
        options: GenerationOptions,
    ) -> Callable[..., ByteStream]:
        """Check the arguments of `stream`, and return what makes it."""
        wanted = _request(max_new_bytes, request, options)
        method, sampler, rules = wanted.decoding_method(), wanted.sampler(), wanted.stop_rules()
        method.check(self.config)
        ids = prompt_ids(prompt)
        if len(ids) + rules.max_new_bytes > self.backend.max_bytes:
            raise CapacityError(
                f"prompt: found {len(ids)} bytes and max_new_bytes={rules.max_new_bytes}, "
                f"expected at most max_bytes={self.backend.max_bytes} in all"
            )

        def make(*, stream: bool) -> ByteStream:
            started = time.perf_counter()
            text = np.concatenate([_ONLY_BOS, ids])
            lease = self._pool.lease(text, stream=stream)
            return ByteStream(lease, text, method, sampler, rules, started)

        return make

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
            prompt: any bytes, or text (UTF-8); may be empty. Or token ids, int64 [n], BOS first.
            max_new_bytes: as in `GenerationRequest`; None: the request's, or its default.
            request: what to generate; None: `GenerationRequest`'s defaults.
            on_chunk: called with each chunk.
            options: fields of `GenerationRequest`; they replace the request's.

        Raises:
            BusyError: no sequence can become free, see the class.
            CapacityError: prompt and new bytes exceed ``max_bytes``.
            GraphError: a graph fails while it runs; the runtime can be used again unless the error denies it.
            MethodError: unknown method, or one that this model cannot run.
            SamplingError: a parameter of sampling is out of range.
            TypeError: an option that does not exist.
            ValueError: negative ``max_new_bytes``, an empty stop string, or ids that are no prompt.
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
        with self._prepare(prompt, max_new_bytes, request, options)(stream=False) as stream:
            return read(stream)

    def score(self, prompt: Prompt, continuation: bytes | str) -> Score:
        """Return the log-probability of each byte of a continuation, given the prompt and the bytes before it.

        The model reads the given text; nothing is drafted, so the figures are the model's own.

        Args:
            prompt: any bytes, or text (UTF-8); may be empty. Or token ids, int64 [n], BOS first.
            continuation: any bytes, or text (UTF-8); may be empty.

        Raises:
            BusyError: no sequence can become free, see the class.
            CapacityError: prompt and continuation exceed ``max_bytes``.
            GraphError: see `generate`.
            ValueError: ids that are no prompt, or a continuation that is neither bytes nor text.
        """
        if not isinstance(continuation, str | bytes):
            raise ValueError(f"continuation: found {type(continuation).__name__}, expected bytes or text")
        before, after = prompt_ids(prompt), encode(continuation, bos=False)
        if len(before) + len(after) > self.backend.max_bytes:
            raise CapacityError(
                f"prompt: found {len(before)} bytes and a continuation of {len(after)}, "
                f"expected at most max_bytes={self.backend.max_bytes} in all"
            )
        ids = np.concatenate([_ONLY_BOS, before, after])
        lease = self._pool.lease(ids[: len(before)])
        try:
            lease.session.begin(ids[: max(1, len(before))], RunStats())
            logprobs = score_tokens(lease.session, ids, 1 + len(before))
        except BaseException:
            lease.session.spoil()
            raise
        finally:
            lease.release()
        return Score(decode(after), logprobs)


def _request(
    max_new_bytes: int | None, request: GenerationRequest | None, options: GenerationOptions
) -> GenerationRequest:
    """Return the request that the arguments of `BltRuntime.generate` describe."""
    if request is None:
        return GenerationRequest(**options) if max_new_bytes is None else GenerationRequest(max_new_bytes, **options)
    if not isinstance(request, GenerationRequest):
        raise ValueError(f"request: found {type(request).__name__}, expected a GenerationRequest")
    return (
        replace(request, **options)
        if max_new_bytes is None
        else replace(request, max_new_bytes=max_new_bytes, **options)
    )
