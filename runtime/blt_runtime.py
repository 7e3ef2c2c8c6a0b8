"""Loads a bundle and generates bytes: the runtime's front door."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import finalize

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.protocol import Backend, Ids
from fastblt.runtime.backends.registry import load_backend
from fastblt.runtime.batching.kept_scheduler import KeptScheduler
from fastblt.runtime.batching.together import generate_together
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.generation import ByteStream, Chunk, Generation, Prompt
from fastblt.runtime.progress import OnProgress, no_progress
from fastblt.runtime.request import GenerationOptions, GenerationRequest
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequences.pool import PoolStats, SequencePool
from fastblt.runtime.sequences.sequence import Sequence
from fastblt.runtime.sequences.text_maker import ONLY_BOS, TextMaker

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

T = TypeVar("T")


class BltRuntime(TextMaker):
    """Holds a loaded model and memory for texts, which grow at the same time, on any number of threads.

    Memory for one text is a place: caches and buffers that are allocated once, for ``max_bytes``. There are at most
    `sequences` of them. A text has one until its call returns, or its stream has ended, is closed, or nobody refers to
    it. When all are taken, `generate` and `score` wait for calls of other threads; where no place would ever be free
    (streams are open, or the call comes from inside another one, e.g. from ``on_chunk``) they raise `BusyError`, as
    `stream` does. What a text has read stays in its place: a later one that begins alike continues there, and reads
    only what differs (`fastblt.runtime.sequences.pool`).

    Every call here is about a text of its own; `sequence` makes texts that continue from call to call.

    Args:
        backend: the loaded model.
        reuse_prompts: whether what has been read for one text may be used for another. On a CPU the bytes are the same
            either way; what changes is how long the first one takes.
    """

    def __init__(self, backend: Backend, *, reuse_prompts: bool = True) -> None:
        super().__init__(SequencePool(backend, Learned(), reuse=reuse_prompts))
        self._scheduler = KeptScheduler(backend)
        finalize(self, self._scheduler.close).atexit = False

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
        """Return how many texts have a place at the moment."""
        return self._pool.stats.in_use

    @property
    def sequence_bytes(self) -> int:
        """Return the bytes of memory that a place takes at most."""
        return self.backend.sequence_bytes

    @property
    def pool_stats(self) -> PoolStats:
        """Return what became of the texts so far, and how many places are in use, idle and waited for."""
        return self._pool.stats

    def sequence(self) -> Sequence:
        """Return a new sequence: a text that continues from call to call."""
        return Sequence(self._pool)

    def load_sequence(self, path: str | Path) -> Sequence:
        """Return the sequence that `Sequence.save` wrote to a file.

        Raises:
            BusyError: no place can become free, see the class.
            SequenceFileError: the file cannot be read, is damaged, or was written with another model, backend or type,
                or the text is longer than ``max_bytes``.
        """
        return Sequence.load(self._pool, Path(path))

    def generate_many(
        self,
        prompts: Collection[Prompt],
        max_new_bytes: int | None = None,
        *,
        at_once: int | None = None,
        request: GenerationRequest | None = None,
        on_chunk: Callable[[int, Chunk], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Generation]:
        """Generate after each of several prompts, in rounds that the texts share: weights are read once for all.

        Each text is that of `generate`, except that a seed fixes what is drawn for all texts alike. Where other
        threads hold places, the texts share the others, and take more as these become free. All prompts are checked
        before the first text begins. What is made to share calls is kept for later calls of this runtime.

        Args:
            prompts: as for `generate`.
            max_new_bytes: as for `generate`, of each text.
            at_once: most texts that grow at the same time; None: `sequences`, or as many as places are free.
            request: as for `generate`.
            on_chunk: called with the index of a prompt and each chunk of its text.
            options: as for `generate`.

        Returns:
            The texts, in the order of the prompts.

        Raises:
            Exception: as `generate`; the first error ends all texts.
            ValueError: also where ``prompts`` is a single prompt, or ``at_once`` is not in 1..`sequences`.
        """
        most = self.sequences if at_once is None else at_once
        if not 1 <= most <= self.sequences:
            raise ValueError(f"at_once: found {most}, expected 1..{self.sequences}, the sequences of the runtime")
        _check_is_collection(prompts)

        def opener(prompt: Prompt) -> Callable[[], ByteStream]:
            wanted = self._check(prompt, max_new_bytes, request, options)
            self._whole_text(wanted)  # refuses one that is too long
            return lambda: self._start(wanted, stream=False, together=True)

        openers = [opener(prompt) for prompt in prompts]
        if not openers:
            return []
        most = min(most, len(openers))
        with self._scheduler.lend(most) as scheduler:
            return generate_together(scheduler, openers, on_chunk, at_once=most)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session that holds nothing but BOS, for work below the level of `generate`; it waits as that does.

        Raises:
            BusyError: see the class.
        """
        lease = self._pool.lease(ONLY_BOS)
        try:
            lease.session.begin(ONLY_BOS, RunStats())
            yield lease.session
        finally:
            lease.session.spoil()
            lease.held = False
            lease.release()

    def _before(self) -> Ids:
        return ONLY_BOS

    def _owner(self) -> None:
        return None

    def _open(self, make: Callable[[], ByteStream]) -> ByteStream:
        return make()

    def _whole(self, make: Callable[[], ByteStream], read: Callable[[ByteStream], T]) -> T:
        stream = make()
        try:
            return read(stream)
        finally:
            stream.close()

    def _call(self, work: Callable[[], T]) -> T:
        return work()


def _check_is_collection(prompts: object) -> None:
    """Raise ValueError unless these are prompts, and not one prompt."""
    single = isinstance(prompts, str | bytes | bytearray | memoryview)
    if single or not isinstance(prompts, Collection) or (isinstance(prompts, np.ndarray) and prompts.ndim < 2):
        raise ValueError(
            f"prompts: found {type(prompts).__name__}, expected a list of prompts; generate() takes a single one"
        )
