"""Implements `fastblt.runtime.backends.protocol.Backend` on a GPU.

All work goes to one stream. The host waits only where it has to decide something: for the patcher's entropies and for
the decoder's rows. Each part's calls are in a file of their own; here they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from fastblt.runtime.backends.gpu.cuda import CudaError, Stream
from fastblt.runtime.backends.gpu.decoder_calls import DecoderCalls
from fastblt.runtime.backends.gpu.device_rows import DeviceRows
from fastblt.runtime.backends.gpu.drafting import DeviceDrafter, StepDrafter
from fastblt.runtime.backends.gpu.encoder_calls import EncoderCalls
from fastblt.runtime.backends.gpu.executor import Executor
from fastblt.runtime.backends.gpu.global_calls import GlobalCalls
from fastblt.runtime.backends.gpu.graph import DeviceGraph, first_visible
from fastblt.runtime.backends.gpu.patcher_calls import LookAhead, PatcherCalls
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, position_count
from fastblt.runtime.backends.gpu.tensor_table import Binding, tensors_bound_as
from fastblt.runtime.backends.gpu.warm_up import warm_up_steps
from fastblt.runtime.backends.graph_error import GraphError, graph_error, reporting
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import (
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
    Progress,
    State,
    encodes_whole_patches,
)
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.progress import OnProgress, no_progress


class DeviceBackend:
    """Runs a bundle's graphs on a GPU; also implements `fastblt.runtime.measure.verify.lockstep.Inspectable`.

    Args:
        bundle: whose graphs the executors run; the embedding tables are read from it.
        executors: one for each graph, by part.
        stream: carries all work.
        max_bytes: longest prompt plus new bytes.
        name: of the backend, as users write it.
        providers: ONNX Runtime's execution providers, best first; none where it does not run the graphs.
        row_floor: fewest rows of a call, a power of two; shorter calls are padded.

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
    ) -> None:
        self.name = name
        self.providers = list(providers)
        self.config = config = bundle.config
        self.manifest = bundle.manifest
        self.max_bytes = max_bytes
        self.sequences, self.sequence_bytes = 1, 0
        self.stream = stream
        if config.block_size >= CALL_ROWS:
            raise BundleError(
                f"{bundle.path}: found blocks of {config.block_size} bytes, expected fewer than {CALL_ROWS}"
            )
        positions, history = position_count(max_bytes), config.hash.context - 1
        self._rows = _make_rows(executors, stream, positions)
        latents = self._rows["latent_kv"].whole
        self.graphs = {
            part: DeviceGraph(
                executor,
                config.stacks[part],
                stream,
                history,
                slides=executor.slots < positions,
                whole={"latent_kv": latents} if part == "decoder" and executor.accepts("latents", positions) else {},
                row_floor=row_floor,
            )
            for part, executor in executors.items()
        }
        """The graphs with their memory, by part."""
        path, width = bundle.embeddings, config.encoder.dim
        tables = None if path is None else HostEmbeddings(path, config.hash, width)
        self._connect(history, tables)

    def _connect(self, history: int, tables: HostEmbeddings | None) -> None:
        """Put the calls of the parts together: what each one reads, and what it leaves for the next."""
        graphs, rows, stream = self.graphs, self._rows, self.stream
        embeddings, latents = rows["patch_embeddings"], rows["latent_kv"]
        states = rows["states"] if self.config.decoder_input == "encoder" else None
        self._patcher = PatcherCalls(graphs["patcher"], stream) if "patcher" in graphs else None
        self._look_ahead = LookAhead(graphs.get("patcher"), self.max_bytes)
        self._encoder = EncoderCalls(graphs["encoder"], history, tables, embeddings, states)
        self._global = GlobalCalls(graphs["global"], embeddings, latents)
        self._decoder = DecoderCalls(graphs["decoder"], stream, latents, states, self._look_ahead)
        self._step_drafter = StepDrafter(self._encoder, self._decoder, stream)
        self._device_drafter: DeviceDrafter | None = None
        if states is None:
            self._device_drafter = DeviceDrafter(None, self._decoder, self._look_ahead, stream, history)
        elif tables is None:
            self._device_drafter = DeviceDrafter(self._encoder, self._decoder, self._look_ahead, stream, history)

    def warm_up(self, on_progress: OnProgress = no_progress) -> None:
        """Bind, run and record all that generations can need, so that none of it happens while a text grows.

        Patches longer than usual are the exception: what they need is bound when they occur. The caches are emptied.

        Args:
            on_progress: a step is a shape class, or a length of drafts.

        Raises:
            BundleError: a graph does not accept a shape.
            GraphError: a graph fails.
        """
        self._empty()
        steps = warm_up_steps(self.graphs, self._decoder, self._device_drafter)
        for done, step in enumerate(steps):
            on_progress(done, len(steps), step.name)
            try:
                step.run()
                self.stream.synchronize()
            except (GraphError, CudaError, MemoryError) as error:
                raise self.failure(step.part, error) from error
        self._empty()
        on_progress(len(steps), len(steps), "")

    def _empty(self) -> None:
        """Empty the caches, once everything that is queued is done; the session that they belonged to is over."""
        for graph in self.graphs.values():
            graph.clear()
        self._look_ahead.forget()

    def new_sequence(self) -> DeviceBackend:
        """Implement `Backend.new_sequence`."""
        return self

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state`."""
        raise NotImplementedError

    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore`."""
        raise NotImplementedError

    def reset(self) -> None:
        """Implement `BackendSequence.reset`."""
        self._look_ahead.forget()

    def close(self) -> None:
        """Implement `BackendSequence.close`."""

    def failure(self, part: str, error: Exception) -> Exception:
        """Return what to raise for an exception in the calls of a part; the device may be lost."""
        lost = not self.stream.works()
        if isinstance(error, GraphError) and not lost:
            return error
        return graph_error(self.graphs[part].spec.file, error, lost=lost)

    @reporting("patcher", GraphError, CudaError, MemoryError)
    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`; what was asked ahead is answered without a call."""
        known = self._look_ahead.take(position, ids, visible_from)
        if known is not None:
            return known
        assert self._patcher is not None, "the model has no patcher"
        return self._patcher.run(position, ids, visible_from)

    @reporting("encoder", GraphError, CudaError, MemoryError)
    def run_encoder(
        self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None
    ) -> None:
        """Implement `BackendSequence.run_encoder`."""
        self._encoder.run(position, ids, starts, ends, visible_from)

    @reporting("global", GraphError, CudaError, MemoryError)
    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global`."""
        self._global.run(first_patch, count, visible_from)

    @reporting("decoder", GraphError, CudaError, MemoryError)
    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`."""
        return self._decoder.run(position, ids, latents, block, visible_from)

    @reporting("decoder", GraphError, CudaError, MemoryError)
    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `BackendSequence.draft`: on the device, unless the caller picks bytes or the host looks them up."""
        first_seen, on_device = visible_from or None, self._device_drafter
        if pick is None and on_device is not None and count <= DeviceDrafter.LONGEST:
            return on_device.draft(position, ids, latent, count, first_seen)
        return self._step_drafter.draft(position, ids, latent, count, pick, first_seen)

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from`."""
        whole = encodes_whole_patches(self.config)
        for part, graph in self.graphs.items():
            # Patches that are encoded whole wait until they close: the encoder continues where the open one begins.
            first = open_patch if part == "encoder" and whole else position
            # The global transformer counts patches: how many come before the position is not known here.
            needed = 0 if part == "global" else first_visible(first, graph.window)
            if graph.caches.base > needed:
                return False
        return whole or self._encoder.pool.base <= open_patch

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes`; padding counts as rows."""
        return self.graphs[part].moved_bytes(position, rows)

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Implement `Inspectable.tensor`.

        Raises:
            RewindError: the cache no longer holds the first position.
        """
        if name in self._rows:
            return self._rows[name].read(first, count)
        part, _, cache = name.partition(".")
        return self.graphs[part].read_cache(cache, first, count)

    def set_tensor(self, name: str, first: int, values: NDArray[Any]) -> None:
        """Implement `Inspectable.set_tensor`."""
        self._rows[name].write(first, values)


def _make_rows(executors: Mapping[str, Executor], stream: Stream, positions: int) -> dict[str, DeviceRows]:
    """Allocate what passes from graph to graph, by tensor."""
    return {
        spec.name: DeviceRows(stream, positions, spec)
        for part in ("encoder", "global")
        for spec in tensors_bound_as(executors[part].spec, Binding.LINK)
    }
