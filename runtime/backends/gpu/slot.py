"""Puts together what one sequence has on a GPU: memory at fixed addresses, the calls of each part, recorded work.

Graphs that were captured belong to the addresses of their slot, so a slot is allocated and warmed up once, and lent to
one sequence after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from fastblt.runtime.backends.gpu.decoder_calls import DecoderCalls
from fastblt.runtime.backends.gpu.device_rows import MOST_ELEMENTS, DeviceRows
from fastblt.runtime.backends.gpu.drafting import DeviceDrafter, StepDrafter
from fastblt.runtime.backends.gpu.encoder_calls import EncoderCalls
from fastblt.runtime.backends.gpu.global_calls import GlobalCalls
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.patcher_calls import Asked, LookAhead, PatcherCalls
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, SlidingBuffer, position_count
from fastblt.runtime.backends.gpu.tensor_table import Binding, tensors_bound_as
from fastblt.runtime.backends.gpu.warm_up import Step, warm_up_steps
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.backends.protocol import Drafted, Ids, Pick, encodes_whole_patches

if TYPE_CHECKING:
    from fastblt.runtime.backends.gpu.backend import DeviceBackend


#: Attributes that belong to a place, and not to what is in it.
_PLACED = (
    *("place", "graphs", "rows", "patcher", "look_ahead", "encoder", "latents", "decoder", "draft_decoder"),
    *("step_drafter", "device_drafter"),
)


class _State(NamedTuple):
    """Holds what the host knows about what is in a slot's place."""

    ranges: list[tuple[int, int]]
    """First position and end of every buffer."""
    ends: dict[str, int]
    """Rows that are in use of what passes from graph to graph."""
    open_from: int
    answer: Asked | None
    """Of the patcher, asked ahead."""


class Slot:
    """Holds the memory of one sequence and everything that is bound to it; its calls are made under the model's lock.

    Args:
        backend: whose graphs it runs.
        place: index among the backend's slots, in the memory that they share.

    Attributes:
        graphs: the graphs with their memory, by part.
        rows: what passes from graph to graph, by tensor.
        patcher: runs the patcher; None where the model has none.
        look_ahead: asks it before a session does.
        encoder: runs the encoder.
        latents: runs the global transformer.
        decoder: runs the decoder.
        draft_decoder: runs the draft decoder; None where the decoder itself denoises blocks.
    """

    def __init__(self, backend: DeviceBackend, place: int) -> None:
        self.place = place
        self.config = config = backend.config
        stream = backend.stream
        positions, history = position_count(backend.max_bytes), config.hash.context - 1
        self.whole_patches = encodes_whole_patches(config)
        self.rows = _make_rows(backend, positions, place)
        embeddings, latents = self.rows["patch_embeddings"], self.rows["latent_kv"]
        self.graphs = self._make_graphs(backend, positions)
        self.resumable_from = 0
        """First position that a text can be continued from; more than 0 where it was restored from copies of rows."""
        states = self.rows["states"] if config.decoder_reads_states else None
        patcher = self.graphs.get("patcher")
        self.patcher = None if patcher is None else PatcherCalls(patcher, stream)
        self.look_ahead = LookAhead(patcher, backend.max_bytes)
        self.encoder = EncoderCalls(self.graphs["encoder"], history, backend.tables, embeddings, states)
        self.latents = GlobalCalls(self.graphs["global"], embeddings, latents)
        self.decoder = DecoderCalls(self.graphs["decoder"], stream, latents, states, self.look_ahead)
        draft = self.graphs.get("draft")
        self.draft_decoder = None if draft is None else DecoderCalls(draft, stream, latents, None, self.look_ahead)
        self.step_drafter = StepDrafter(self.encoder, self.decoder, stream)
        self.device_drafter: DeviceDrafter | None = None
        """Drafts without the host, where nothing has to be looked up there."""
        if states is None or backend.tables is None:
            encoder = None if states is None else self.encoder
            self.device_drafter = DeviceDrafter(encoder, self.decoder, self.look_ahead, stream, history)

    def _make_graphs(self, backend: DeviceBackend, positions: int) -> dict[str, DeviceGraph]:
        """Allocate the memory of every graph; that of drafts reads and overwrites the decoder's keys and values."""
        found: dict[str, DeviceGraph] = {}
        latents, history = self.rows["latent_kv"], self.config.hash.context - 1
        # After the decoder, whose caches it shares.
        for part, executor in sorted(backend.executors.items(), key=lambda item: item[0] == "draft"):
            whole = (
                executor.spec.input("latent_kv") is not None
                and executor.accepts("latents", positions)
                and latents.elements <= MOST_ELEMENTS
            )
            found[part] = DeviceGraph(
                executor,
                self.config.graph_stacks[part],
                backend.stream,
                history,
                backend.memory,
                slides=executor.slots < positions,
                whole={"latent_kv": latents.whole} if whole else {},
                row_floor=backend.row_floor,
                # A block, and the byte before it.
                most_rows=self.config.block_size + 1 if part == "draft" else CALL_ROWS,
                caches=found["decoder"].caches if part == "draft" else None,
            )
        return found

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None, visible_from: int | None
    ) -> Drafted:
        """Draft on the device alone, unless the caller picks bytes or the host looks them up."""
        on_device = self.device_drafter
        if pick is None and on_device is not None and count <= DeviceDrafter.LONGEST:
            return on_device.draft(position, ids, latent, count, visible_from)
        return self.step_drafter.draft(position, ids, latent, count, pick, visible_from)

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from`."""
        if position < self.resumable_from:
            return False
        for part, graph in self.graphs.items():
            # Patches that are encoded whole wait until they close: the encoder continues where the open one begins.
            first = open_patch if part == "encoder" and self.whole_patches else position
            # The global transformer counts patches: how many come before the position is not known here.
            needed = 0 if part == "global" else first_visible(first, graph.window)
            if graph.caches.base > needed:
                return False
        return self.whole_patches or self.encoder.pool.base <= open_patch

    def warm_up_steps(self) -> list[Step]:
        """Return what to run so that nothing is bound or recorded while a text grows."""
        return warm_up_steps(self.graphs, self.decoder, self.device_drafter)

    def reset(self) -> None:
        """Begin another text, without a call of the driver: nothing that an earlier one left is read."""
        for graph in self.graphs.values():
            graph.reset()
        self._forget()

    def clear(self) -> None:
        """Empty everything, behind whatever is queued: NaN, where a text has left any, would spread."""
        for graph in self.graphs.values():
            graph.clear()
        for rows in self.rows.values():
            rows.clear()
        self._forget()

    def _forget(self) -> None:
        self.look_ahead.forget()
        self.resumable_from = self.encoder.open_from = 0

    def exchange_places(self, other: Slot) -> None:
        """Let each of two slots have the place of the other, to which its contents have been copied."""
        state, others = self._state(), other._state()
        for name in _PLACED:
            mine = getattr(self, name)
            setattr(self, name, getattr(other, name))
            setattr(other, name, mine)
        self._set_state(state)
        other._set_state(others)

    def _buffers(self) -> list[SlidingBuffer]:
        pools = (graph.pool for graph in self.graphs.values() if graph.pool is not None)
        return [*(graph.caches for graph in self.graphs.values()), *pools]

    def _state(self) -> _State:
        """Return what the host knows about what is in this place."""
        ranges = [(buffer.base, buffer.end) for buffer in self._buffers()]
        ends = {name: rows.end for name, rows in self.rows.items()}
        return _State(ranges, ends, self.encoder.open_from, self.look_ahead.answer)

    def _set_state(self, state: _State) -> None:
        for buffer, (base, end) in zip(self._buffers(), state.ranges, strict=True):
            buffer.base, buffer.end = base, end
        for name, end in state.ends.items():
            self.rows[name].end = end
        self.encoder.open_from, self.look_ahead.answer = state.open_from, state.answer

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Implement `Inspectable.tensor`.

        Raises:
            RewindError: the cache no longer holds the first position.
        """
        if name in self.rows:
            return self.rows[name].read(first, count)
        part, _, cache = name.partition(".")
        return self.graphs[part].read_cache(cache, first, count)


def _make_rows(backend: DeviceBackend, positions: int, place: int) -> dict[str, DeviceRows]:
    """Allocate what passes from graph to graph, by tensor."""
    return {
        spec.name: DeviceRows(backend.stream, positions, spec, backend.memory, place)
        for part in ("encoder", "global")
        for spec in tensors_bound_as(backend.executors[part].spec, Binding.LINK)
    }
