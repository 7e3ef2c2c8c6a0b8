"""The runtime's front door: load a bundle, generate bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.backends.registry import load_backend
from fastblt.runtime.generation import ByteStream, Chunk, Generation, Prompt, StopRules, prompt_ids, stop_strings
from fastblt.runtime.methods import parse_method
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import CapacityError, Session


class BltRuntime:
    """A loaded model. Buffers are allocated once, for ``max_bytes``; generations follow one another in them."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        provider: str = "auto",
        backend: str = "onnxruntime",
        max_bytes: int = 4096,
        threads: int | None = None,
    ) -> BltRuntime:
        """Load a bundle that ``fastblt export`` wrote.

        Args:
            bundle: its folder; every file is compared with the manifest's size and sha256.
            provider: ``cpu``, ``cuda``, ``tensorrt`` (ONNX Runtime's provider for TensorRT 10), or ``auto`` (the CPU
                until an audit has passed on a GPU; engines: the GPU).
            backend: ``onnxruntime``; ``tensorrt`` or ``tensorrt-rtx`` (engines that ``fastblt compile`` made); or
                ``eager`` (PyTorch, needs the ``export`` extra).
            max_bytes: longest prompt plus new bytes.
            threads: threads of one operator; None: one for models that fit the caches, else all cores.

        Raises:
            BundleError: a file is missing, damaged or not what the manifest says.
            ProviderError: the provider cannot be used here.
            TensorRtError: TensorRT is missing or of a version that is not supported.
            CudaError: there is no usable GPU, or cuda-python is missing.
            ValueError: unknown backend or provider, or ``max_bytes`` < 1.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes: found {max_bytes}, expected a positive integer")
        return cls(load_backend(Path(bundle), backend, provider, max_bytes, threads))

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.backend.device

    @property
    def config(self) -> BltConfig:
        """The model's configuration."""
        return self.backend.config

    def stream(
        self,
        prompt: Prompt,
        max_new_bytes: int,
        *,
        method: str = "ar",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: bytes | str | Sequence[bytes | str] = (),
        stop_at_eos: bool = True,
    ) -> ByteStream:
        """Generate; everything else consumes this iterator of chunks. Arguments and errors as in `generate`.

        Afterwards its ``finish`` and ``stats`` tell why it ended and what it cost.
        """
        started = time.perf_counter()
        chosen = parse_method(method)
        chosen.check(self.config)
        sampler = Sampler(temperature, top_p, seed)
        if max_new_bytes < 0:
            raise ValueError(f"max_new_bytes: found {max_new_bytes}, expected an integer >= 0")
        ids = prompt_ids(prompt)
        if len(ids) + max_new_bytes > self.backend.max_bytes:
            raise CapacityError(
                f"prompt: found {len(ids)} bytes and max_new_bytes={max_new_bytes}, "
                f"expected at most max_bytes={self.backend.max_bytes} in all"
            )
        session = Session(self.backend)
        session.append(ids)
        session.stats.prompt_bytes = len(ids)
        return ByteStream(session, chosen, sampler, StopRules(max_new_bytes, stop_strings(stop), stop_at_eos), started)

    def generate(
        self,
        prompt: Prompt,
        max_new_bytes: int,
        *,
        method: str = "ar",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: bytes | str | Sequence[bytes | str] = (),
        stop_at_eos: bool = True,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Generation:
        """Generate up to ``max_new_bytes`` bytes after a prompt.

        Args:
            prompt: any bytes, or text (UTF-8); may be empty. Or token ids, int64 [n], BOS first.
            max_new_bytes: >= 0; a token without a byte counts as one.
            method: ``ar``, ``s:K`` (BLT-S), ``d:B@RULE`` (BLT-D), ``dv:B@RULE`` (BLT-DV) or ``auto``; docs/decoding.md.
            temperature: 0 is greedy.
            top_p: nucleus of the sampled distribution.
            seed: of sampling.
            stop: the text ends before this string, or before the first of these.
            stop_at_eos: end at the end-of-document token.
            on_chunk: called with each chunk.

        Raises:
            CapacityError: prompt and new bytes exceed ``max_bytes``.
            MethodError: unknown method, or one that this model cannot run.
            SamplingError: temperature or top_p out of range.
            ValueError: negative ``max_new_bytes``, an empty stop string, or ids that are no prompt.
        """
        run = self.stream(
            prompt,
            max_new_bytes,
            method=method,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            stop_at_eos=stop_at_eos,
        )
        pieces = []
        for chunk in run:
            pieces.append(chunk.data)
            if on_chunk:
                on_chunk(chunk)
        return Generation(b"".join(pieces), run.finish, run.stats, tuple(run.tokens))
