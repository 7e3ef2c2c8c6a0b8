"""Runs one text in a slot of a GPU, under the model's lock: all slots share a stream, graphs and activation memory."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastblt.runtime.backends.gpu.cuda import CudaError
from fastblt.runtime.backends.gpu.slot import Slot
from fastblt.runtime.backends.gpu.slot_state import read_state, write_state
from fastblt.runtime.backends.graph_error import GraphError, reporting
from fastblt.runtime.backends.protocol import DecoderRows, Drafted, Floats, Ids, Pick, Progress, State

if TYPE_CHECKING:
    from fastblt.runtime.backends.gpu.backend import DeviceBackend


class DeviceSequence:
    """Implements `fastblt.runtime.backends.protocol.BackendSequence`, and `verify.lockstep.Inspectable`.

    Every call raises ValueError once the sequence is closed. Results may be views of the slot's memory, which only
    later calls of the same sequence overwrite.

    Args:
        backend: lent the slot, and takes it back when the sequence is closed or nobody refers to it any more.
        slot: an empty one.
    """

    def __init__(self, backend: DeviceBackend, slot: Slot) -> None:
        self.backend, self.config = backend, backend.config
        self._lock, self._slot = backend.lock, slot
        self._open = True
        self._give_back = weakref.finalize(self, backend.take_back, slot)

    @property
    def is_open(self) -> bool:
        """Return whether it has not been closed."""
        return self._open

    @property
    def slot(self) -> Slot:
        """Return the slot; raise ValueError where the sequence is closed."""
        if not self._open:
            raise ValueError("sequence: found a closed one, expected one that is open")
        return self._slot

    def close(self) -> None:
        """Implement `BackendSequence.close`.

        Nothing is waited for, since this may be called where an object is destroyed, in the middle of another call.
        """
        self._open = False
        self._give_back()

    def failure(self, part: str, error: Exception) -> Exception:
        """Return what to raise for an exception in the calls of a part."""
        return self.backend.failure(part, error)

    @reporting("patcher", GraphError, CudaError, MemoryError)
    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`; what was asked ahead is answered without a call."""
        with self._lock:
            known = self.slot.look_ahead.take(position, ids, visible_from)
            if known is not None:
                return known
            patcher = self.slot.patcher
            assert patcher is not None, "the model has no patcher"
            return patcher.run(position, ids, visible_from)

    @reporting("encoder", GraphError, CudaError, MemoryError)
    def run_encoder(
        self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None
    ) -> None:
        """Implement `BackendSequence.run_encoder`."""
        with self._lock:
            self.slot.encoder.run(position, ids, starts, ends, visible_from)

    @reporting("global", GraphError, CudaError, MemoryError)
    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global`."""
        with self._lock:
            self.slot.latents.run(first_patch, count, visible_from)

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`."""
        run = self._run_draft if block and self.config.has_draft else self._run_decoder
        return run(position, ids, latents, block, visible_from)

    @reporting("decoder", GraphError, CudaError, MemoryError)
    def _run_decoder(self, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None) -> DecoderRows:
        with self._lock:
            return self._own(self.slot.decoder.run(position, ids, latents, block, visible_from))

    @reporting("draft", GraphError, CudaError, MemoryError)
    def _run_draft(self, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None) -> DecoderRows:
        with self._lock:
            draft_decoder = self.slot.draft_decoder
            assert draft_decoder is not None, "the model has no draft decoder"
            return self._own(draft_decoder.run(position, ids, latents, block, visible_from))

    def _own(self, rows: DecoderRows) -> DecoderRows:
        """Return rows that calls of other sequences leave alone, though this one may move to another place."""
        return rows.copy() if self.backend.batches else rows

    @reporting("decoder", GraphError, CudaError, MemoryError)
    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `BackendSequence.draft`: on the device alone, unless the caller picks bytes."""
        with self._lock:
            return self.slot.draft(position, ids, latent, count, pick, visible_from or None)

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from`."""
        with self._lock:
            return self.slot.can_resume_from(position, open_patch)

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes`; padding counts as rows."""
        return self.slot.graphs[part].moved_bytes(position, rows)

    def reset(self) -> None:
        """Implement `BackendSequence.reset`."""
        with self._lock:
            self.slot.reset()

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state`.

        Raises:
            RewindError: the caches no longer hold what the next row sees.
        """
        with self._lock:
            return read_state(self.slot, progress)

    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore`."""
        with self._lock:
            write_state(self.slot, state, progress)

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Implement `Inspectable.tensor`.

        Raises:
            RewindError: the cache no longer holds the first position.
        """
        with self._lock:
            return self.slot.tensor(name, first, count)

    def set_tensor(self, name: str, first: int, values: NDArray[Any]) -> None:
        """Implement `Inspectable.set_tensor`."""
        with self._lock:
            self.slot.rows[name].write(first, values)
