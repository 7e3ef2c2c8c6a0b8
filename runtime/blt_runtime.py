"""Loads a bundle and generates bytes: the runtime's front door."""

from __future__ import annotations

import time
from collections.abc import Callable
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
from fastblt.runtime.turns import Turns

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

T = TypeVar("T")


class BltRuntime:
    """Holds a loaded model. Buffers are allocated once, for ``max_bytes``; generations follow one another in them.

    Threads may share a runtime. `generate` and `score` wait for those of other threads. While a stream is open, which
    is until it has ended, is closed, or nobody refers to it, they and `stream` raise `BusyError` immediately instead.
    So does a call from inside another one on the same thread, e.g. from ``on_chunk``. Texts that have to grow at the
    same time need a runtime each.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._learned = Learned()
        self._turns = Turns()

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        provider: str = "auto",
        backend: str = "onnxruntime",
        max_bytes: int = 4096,
        threads: int | None = None,
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
            ValueError: unknown backend or provider, or ``max_bytes``, ``threads`` or ``row_floor`` out of range.
        """
        request = LoadRequest(Path(bundle), provider, max_bytes, threads, row_floor, warm_up, on_progress)
        if check_values:
            Bundle.open(bundle, check=False).check_values()
        return cls(load_backend(backend, request))

    @property
    def device(self) -> str:
        """Return ``cpu`` or ``cuda``."""
        return self.backend.device

    @property
    def config(self) -> BltConfig:
        """Return the model's configuration."""
        return self.backend.config

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
        why it ended and what it cost. The runtime generates nothing else until it has ended, is closed, or nobody
        refers to it; see the class.
        """
        return self._turns.open(self._prepare(prompt, max_new_bytes, request, options))

    def _prepare(
        self,
        prompt: Prompt,
        max_new_bytes: int | None,
        request: GenerationRequest | None,
        options: GenerationOptions,
    ) -> Callable[[], ByteStream]:
        """Check the arguments of `stream`, and return what makes it; that takes the caches from whoever has them."""
        wanted = _request(max_new_bytes, request, options)
        method, sampler, rules = wanted.decoding_method(), wanted.sampler(), wanted.stop_rules()
        method.check(self.config)
        ids = prompt_ids(prompt)
        if len(ids) + rules.max_new_bytes > self.backend.max_bytes:
            raise CapacityError(
                f"prompt: found {len(ids)} bytes and max_new_bytes={rules.max_new_bytes}, "
                f"expected at most max_bytes={self.backend.max_bytes} in all"
            )

        def make() -> ByteStream:
            started = time.perf_counter()
            session = Session(self.backend, learned=self._learned)
            session.append(ids)
            session.stats.prompt_bytes = len(ids)
            return ByteStream(session, method, sampler, rules, started)

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
            BusyError: a stream is open, or the call comes from ``on_chunk``.
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
        make = self._prepare(prompt, max_new_bytes, request, options)
        return self._turns.call(lambda: read(make()))

    def score(self, prompt: Prompt, continuation: bytes | str) -> Score:
        """Return the log-probability of each byte of a continuation, given the prompt and the bytes before it.

        The model reads the given text; nothing is drafted, so the figures are the model's own.

        Args:
            prompt: any bytes, or text (UTF-8); may be empty. Or token ids, int64 [n], BOS first.
            continuation: any bytes, or text (UTF-8); may be empty.

        Raises:
            BusyError: a stream is open, or the call comes from inside another one.
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
        ids = np.concatenate([np.array([BOS_ID]), before, after])
        logprobs = self._turns.call(lambda: score_tokens(Session(self.backend), ids, 1 + len(before)))
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
