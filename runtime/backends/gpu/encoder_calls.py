"""Runs the encoder: bytes become states, and the bytes of each closed patch become its embedding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.gpu.call import Call, pieces
from fastblt.runtime.backends.gpu.device_rows import DeviceRows
from fastblt.runtime.backends.gpu.draft_chain import Place
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, SlidingBuffer
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import DRAFT_SLACK, CapacityError, Ids


class EncoderCalls:
    """Runs the encoder's graph and keeps the patch embeddings, and the byte states where the decoder reads them.

    Args:
        graph: the encoder's.
        history: tokens before the first row that its hash n-grams reach back to.
        tables: embedding tables on the host; None where they are in the graph.
        patch_embeddings: receives the embeddings of the patches that a call pools.
        states: receives the state of every byte; None where nobody reads them.
    """

    def __init__(
        self,
        graph: DeviceGraph,
        history: int,
        tables: HostEmbeddings | None,
        patch_embeddings: DeviceRows,
        states: DeviceRows | None,
    ) -> None:
        assert graph.pool is not None, "an encoder has a pool"
        self.pool: SlidingBuffer = graph.pool
        """States that patches are pooled from, since the beginning of the open patch."""
        self.graph = graph
        self._history = history
        self._tables = tables
        self._patch_embeddings = patch_embeddings
        self._states = states
        self.open_from = 0
        """First position of the patch that is pooled next: where a draft's rows are put in the pool depends on it."""

    def run(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None) -> None:
        """Implement `BackendSequence.run_encoder`."""
        rows, done = len(ids) - self._history, 0
        for first, end in pieces(rows):
            # Patches end in the order in which they begin.
            until = int(np.searchsorted(ends, position + end, side="right"))
            # What is pooled now or later begins here at the earliest.
            self.open_from = int(starts[done]) if done < len(starts) else int(ends[-1])
            seen = visible_from[first:end] if isinstance(visible_from, np.ndarray) else visible_from
            piece = ids[first : end + self._history]
            self._encode(position + first, piece, starts[done:until], ends[done:until], seen)
            if until > done:
                self._patch_embeddings.copy_from(self.graph, done, until - done)
            done = until

    def encode_row(self, position: int, ids: Ids, visible_from: int | None) -> None:
        """Encode one row inside the open patch.

        Args:
            position: of the row.
            ids: int64 [history + 1], the row's token after those that its hash n-grams reach back to.
            visible_from: first position that it may see; None: 0.
        """
        none = np.empty(0, dtype=np.int64)
        self._encode(position, ids, none, none, visible_from)

    def place_draft(self, position: int, rows: int) -> Place:
        """Make room for a draft inside the open patch, padding included; it is encoded one row at a time."""
        pool_slot = self.make_room_in_pool(position, rows)
        slot = self.graph.make_room(position, rows)
        self.pool.end = self.graph.caches.end = position + rows
        return Place(position, slot, pool_slot)

    def _encode(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None) -> None:
        """Encode rows and pool the patches that end among them."""
        rows, count = len(ids) - self._history, len(starts)
        pool_slot = self.make_room_in_pool(position, self.graph.padded(rows))
        self.pool.end = position + rows
        call = Call(self.graph, position, rows, visible_from=visible_from, pool_slot=pool_slot)
        self._write_ids(call.arrays, ids, rows)
        base = position - pool_slot
        for name, bounds, pad in (("patch_start", starts, position), ("patch_end", ends, position + 1)):
            # A patch that pads has a byte too: a mean of nothing would not be a number. Nobody reads it.
            call.arrays[name][:] = pad - base
            call.arrays[name][0, :count] = bounds - base
        call.arrays["pool_index"][:] = pool_slot
        call.run()
        if self._states is not None:
            self._states.copy_from(self.graph, position, rows)

    def make_room_in_pool(self, position: int, rows: int) -> int:
        """Make room in the pool for rows, padding included, and return the slot of the first one.

        There is room for the rows of a batch at least: what pads the calls of others lands there.
        """
        origin = min(self.open_from, position)
        try:
            return self.pool.make_room(origin, position, max(rows, SHARED_ROWS))
        except CapacityError as error:
            raise CapacityError(
                f"patch: found one that has {position - origin} bytes and is still open, expected at most "
                f"{self.pool.slots - CALL_ROWS - DRAFT_SLACK} (engines: fastblt compile --max-patch-bytes)"
            ) from error

    def _write_ids(self, arrays: Mapping[str, np.ndarray], ids: Ids, rows: int) -> None:
        """Write the tokens with their history, or the sums of their embeddings on the host."""
        if self._tables is None:
            arrays["ids"][:] = 0
            arrays["ids"][0, : len(ids)] = ids
        else:
            arrays["embedded"][0, rows:] = 0
            self._tables.sum_rows(ids, arrays["embedded"][0, :rows])
