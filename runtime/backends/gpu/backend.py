"""Implements `fastblt.runtime.backends.protocol.Backend` on a GPU: what is loaded once, and its slots for sequences.

All work goes to one stream. The host waits only where it has to decide something: for the patcher's entropies and for
the decoder's rows. Each part's calls are in a file of their own; `slot` puts them together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from threading import RLock

from fastblt.runtime.backends.gpu.batch import DeviceBatch
from fastblt.runtime.backends.gpu.batch_limits import batch_bytes, sequences_of_calls
from fastblt.runtime.backends.gpu.buffer_array import SharedMemory
from fastblt.runtime.backends.gpu.cuda import CudaError, Stream
from fastblt.runtime.backends.gpu.executor import Executor
from fastblt.runtime.backends.gpu.places import block_of
from fastblt.runtime.backends.gpu.sequence import DeviceSequence
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS
from fastblt.runtime.backends.gpu.slot import Slot
from fastblt.runtime.backends.graph_error import GraphError, graph_error
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.progress import OnProgress, no_progress


class DeviceBackend:
    """Holds a bundle's graphs on a GPU, with memory for a fixed number of sequences.

    Args:
        bundle: whose graphs the executors run; the embedding tables are read from it.
        executors: one for each graph, by part.
        stream: carries all work.
        max_bytes: longest prompt plus new bytes.
        name: of the backend, as users write it.
        providers: ONNX Runtime's execution providers, best first; none where it does not run the graphs.
        row_floor: fewest rows of a call, a power of two; shorter calls are padded.
        sequences: most at once; memory for all of them is allocated here.
        sequence_bytes: device memory that each of them takes, as `fastblt.runtime.backends.gpu.memory` computes it.

    Raises:
        BundleError: the model's blocks are longer than one call.
    """

    device = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        executors: Mapping[str, Executor],
        stream: Stream,
        max_bytes: int,
        name: str,
        providers: Sequence[str] = (),
        row_floor: int = 1,
        sequences: int = 1,
        sequence_bytes: int = 0,
    ) -> None:
        self.name = name
        self.providers = list(providers)
        self.config = config = bundle.config
        self.manifest = bundle.manifest
        self.max_bytes = max_bytes
        self.sequences, self.sequence_bytes = sequences, sequence_bytes
        self.stream, self.executors, self.row_floor = stream, executors, row_floor
        if config.block_size >= CALL_ROWS:
            raise BundleError(
                f"{bundle.path}: found blocks of {config.block_size} bytes, expected fewer than {CALL_ROWS}"
            )
        path, width = bundle.embeddings, config.encoder.dim
        self.tables = None if path is None else HostEmbeddings(path, config.hash, width)
        self.lock = RLock()
        """Held during every call of a sequence: the stream, the graphs and their activations belong to all slots."""
        self.memory = SharedMemory(stream, sequences)
        """Of the caches of all slots, side by side."""
        self.batches: list[DeviceBatch] = []
        """Those that are open."""
        self.slots = [Slot(self, place) for place in range(sequences)]
        self._free = deque(self.slots)
        self._warm = False

    @property
    def model_digest(self) -> str:
        """Implement `Backend.model_digest`."""
        return self.manifest.digest

    def new_sequence(self) -> DeviceSequence:
        """Implement `Backend.new_sequence` with a slot that is free; its caches are emptied first.

        Raises:
            GraphError: the device does not empty them.
        """
        try:
            slot = self._free.popleft()
        except IndexError:
            raise CapacityError(
                f"sequences: found {self.sequences} open on the GPU, expected fewer than the {self.sequences} slots "
                "that it was loaded with"
            ) from None
        try:
            with self.lock:
                slot.clear()
                for batch in self.batches:
                    batch.clear()
                self.stream.synchronize()
        except BaseException as error:
            self._free.append(slot)
            if isinstance(error, CudaError):
                raise self.failure("decoder", error) from error
            raise
        return DeviceSequence(self, slot)

    @property
    def idle(self) -> bool:
        """Return whether no sequence is open."""
        return len(self._free) == self.sequences

    def new_batch(self, size: int) -> DeviceBatch:
        """Implement `BatchingBackend.new_batch`.

        Where the backend was warmed up, so is the batch, which takes as long again.

        Raises:
            BundleError: the graphs, or the engines, take one sequence at a time.
            GraphError: the device does not make it, or a graph fails.
        """
        if size < 1:
            raise ValueError(f"batch: found a size of {size}, expected at least 1")
        most, together = min(size, self.sequences), sequences_of_calls(self, size)
        with self.lock:
            needed, free = batch_bytes(self, together), self.stream.cuda.available_memory()
            if needed > free:
                raise CapacityError(
                    f"batch: found {free / 1e9:,.2f} GB free on the GPU, expected {needed / 1e9:,.2f} GB for calls of "
                    f"{together} sequences: share calls of fewer texts"
                )
            try:
                batch = DeviceBatch(self, most, together, self._home(most))
            except CudaError as error:
                raise self.failure("decoder", error) from error
            self.batches.append(batch)
            try:
                if self._warm:
                    batch.warm_up()
            except BaseException:
                batch.close()
                raise
            return batch

    def _home(self, size: int) -> range:
        """Return the places where a batch for ``size`` sequences keeps them; empty where others have them."""
        taken = [batch.home for batch in self.batches]
        return block_of(size, self.sequences, 0, taken) or range(0)

    def take_back(self, slot: Slot) -> None:
        """Let another sequence have a slot.

        It is emptied when it is lent again: this may be called where an object is destroyed, in the middle of a call.
        """
        self._free.append(slot)

    @property
    def free_slots(self) -> list[Slot]:
        """Return the slots that no sequence has."""
        return list(self._free)

    def reset_closed(self) -> None:
        """Let nothing be held where a sequence was closed, so that what pads calls of others has room there."""
        for slot in self.free_slots:
            slot.reset()

    def warm_up(self, on_progress: OnProgress = no_progress) -> None:
        """Bind, run and record all that generations can need, so that none of it happens while a text grows.

        Patches longer than usual are the exception: what they need is bound when they occur. The caches of every slot
        are emptied.

        Args:
            on_progress: a step is a shape class, or a length of drafts, of one slot.

        Raises:
            BundleError: a graph does not accept a shape.
            GraphError: a graph fails.
            ValueError: a sequence is open.
        """
        if not self.idle:
            raise ValueError(f"warm_up: found {self.sequences - len(self._free)} open sequences, expected none")
        with self.lock:
            for slot in self.slots:
                slot.clear()
            steps = [(slot, step) for slot in self.slots for step in slot.warm_up_steps()]
            for done, (slot, step) in enumerate(steps):
                where = f"slot {self.slots.index(slot) + 1} of {self.sequences}, " if self.sequences > 1 else ""
                on_progress(done, len(steps), where + step.name)
                try:
                    step.run()
                    self.stream.synchronize()
                except (GraphError, CudaError, MemoryError) as error:
                    raise self.failure(step.part, error) from error
            for slot in self.slots:
                slot.clear()
            self.stream.synchronize()
            on_progress(len(steps), len(steps), "")
            self._warm = True

    def failure(self, part: str, error: Exception) -> Exception:
        """Return what to raise for an exception in the calls of a part; the device may be lost."""
        with self.lock:
            lost = not self.stream.works()
        if isinstance(error, GraphError) and not lost:
            return error
        return graph_error(self.executors[part].spec.file, error, lost=lost)
