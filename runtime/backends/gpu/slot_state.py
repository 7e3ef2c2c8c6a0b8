"""Copies what a text has left in a slot to the host, and back into that slot or another one.

Of every cache the rows up to the next one are copied, all that it still holds: so each row comes back to its place in
the memory, and what follows is the same to the last bit; and the text can be continued a little before its end. States
of bytes are not copied: the decoder reads a state in the call after the one that makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.gpu.sliding import REWIND, RewindError, SlidingBuffer
from fastblt.runtime.backends.gpu.slot import Slot
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.backends.protocol import Progress, State
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import TensorSpec

_LATENTS = "latent_kv"


class _Store(NamedTuple):
    """Describes one buffer whose rows are copied."""

    buffer: SlidingBuffer
    names: list[str]
    """Of its lanes, in order."""
    spec: TensorSpec
    """Of each lane; its last size is the width of a row."""
    needed: int
    """First position that the next row looks back to."""
    end: int
    """Position of the next row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.spec.dtype)

    @property
    def width(self) -> int:
        return int(self.spec.shape[-1])


def _stores(slot: Slot, at: Progress) -> Iterator[_Store]:
    """Return what to copy of every cache, and of the pool.

    Where patches are encoded whole, nothing in the pool is needed, but where rows are put depends on what is there.
    """
    ends = {"global": at.patches, "encoder": at.open_patch if slot.whole_patches else at.tokens}
    for part, graph in slot.graphs.items():
        if not graph.owns_caches:
            continue
        end, specs = ends.get(part, at.tokens), {spec.name: spec for spec in graph.spec.inputs}
        names = [f"{part}.{name}" for name in graph.cache_names]
        yield _Store(graph.caches, names, specs[graph.cache_names[0]], first_visible(end, graph.window), end)
        if graph.pool is not None:
            yield _Store(graph.pool, ["pool"], specs["pool"], at.open_patch, end)


def _first_latent(at: Progress) -> int:
    """Return the first latent that is read where the text is continued at most `REWIND` positions before its end."""
    return max(0, at.patches - 1 - REWIND)


def read_state(slot: Slot, at: Progress) -> dict[str, NDArray[Any]]:
    """Return copies of the rows that the text needs to be continued, by name.

    Raises:
        RewindError: a cache no longer holds them.
    """
    stores = list(_stores(slot, at))
    for store in stores:
        if store.needed < min(store.buffer.base, store.end):
            raise RewindError(
                f"state: {store.names[0]}: found position {store.needed} needed, expected at least {store.buffer.base}"
            )
    first_latent, latents = _first_latent(at), slot.rows[_LATENTS]
    found = {_LATENTS: latents.read(first_latent, at.patches - first_latent)}
    for store in stores:
        first = min(store.buffer.base, store.end)
        lanes = store.buffer.read(first, store.end - first).view(store.dtype)
        found |= {name: rows.reshape(-1, store.width) for name, rows in zip(store.names, lanes, strict=True)}
    return found


def write_state(slot: Slot, state: State, at: Progress) -> None:
    """Continue a text with what `read_state` returned for the same progress; nothing else is left in the caches.

    Raises:
        ValueError: a tensor is missing or unknown, or its type or shape is wrong; nothing has been written.
    """
    stores, latents = list(_stores(slot, at)), slot.rows[_LATENTS]
    names = {_LATENTS, *(name for store in stores for name in store.names)}
    if state.keys() != names:
        wrong = sorted(state.keys() ^ names)
        raise ValueError(f"state: found {', '.join(wrong)} missing or unknown, expected what this model keeps")
    first_latent = _first_latent(at)
    latents.check(first_latent, at.patches - first_latent)
    _check(_LATENTS, state[_LATENTS], latents.dtype, (at.patches - first_latent, *latents.row_shape))
    for store in stores:
        _check_store(store, state)
    slot.reset()
    slot.resumable_from, slot.encoder.open_from = max(0, at.tokens - REWIND), at.open_patch
    latents.write(first_latent, state[_LATENTS])
    for store in stores:
        count = min(len(state[store.names[0]]), store.buffer.slots)
        lanes = [np.ascontiguousarray(state[name][-count:] if count else state[name][:0]) for name in store.names]
        store.buffer.write(store.end - count, np.stack([rows.reshape(-1).view(np.uint8) for rows in lanes]))


def _check_store(store: _Store, state: State) -> None:
    """Raise ValueError unless the state has rows that this buffer can hold, and all that the next row sees."""
    count = len(state[store.names[0]]) if state[store.names[0]].ndim else 0
    least, most = store.end - store.needed, store.end
    for name in store.names:
        _check(name, state[name], store.dtype, (count, store.width))
    if not least <= count <= most or least > store.buffer.slots:
        raise ValueError(
            f"state: {store.names[0]}: found {count} rows for {store.buffer.slots} slots, expected {least} to {most}"
        )


def _check(name: str, values: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape:
        raise ValueError(f"state: {name}: found {values.dtype} {list(values.shape)}, expected {dtype} {list(shape)}")
