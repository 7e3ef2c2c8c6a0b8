"""`fastblt.runtime.backends.protocol.Backend` on a GPU: what is queued when, and what the host waits for.

Everything goes to one stream. The host waits where it has to decide: for the patcher's entropies, for the decoder's
rows. Where the next thing that the session will ask is known - the entropy after the byte that is most likely, or
after drafted bytes - the patcher is queued behind the decoder, so that one wait serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, aligned
from fastblt.runtime.backends.gpu.executor import Executor
from fastblt.runtime.backends.gpu.graph import DeviceGraph, padded, write_controls
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, RewindError
from fastblt.runtime.backends.gpu.tensor_table import Binding, tensors_bound_as
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    ROW_CAPACITY,
    CapacityError,
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
    encodes_whole_patches,
)
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BundleError, TensorSpec

_ID_BYTES = 8


class DeviceRows:
    """Rows that pass from graph to graph, all of a sequence, on the device; ``spec`` says what a row is."""

    def __init__(self, stream: Stream, rows: int, spec: TensorSpec) -> None:
        # Sizes that calls choose, and the batch of one, come before those of a row.
        self.row_shape = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        self.dtype = numpy_dtype(spec.dtype)
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        self._memory = DeviceMemory(stream.cuda, rows * self.row_bytes)

    def at(self, row: int) -> int:
        """Address of a row."""
        return self._memory.address + row * self.row_bytes


class DeviceBackend:
    """See `fastblt.runtime.backends.protocol.Backend`.

    Args:
        bundle: whose graphs the executors run; the embedding tables are read from it.
        executors: one for each graph.
        stream: carries all work.
        max_bytes: longest prompt plus new bytes.
        name: of the backend, as users give it.
        providers: ONNX Runtime's execution providers, best first; none where it does not run the graphs.
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
    ) -> None:
        self.name = name
        self.providers = list(providers)
        self.config: BltConfig = bundle.config
        self.manifest = bundle.manifest
        self.max_bytes = max_bytes
        self.owner: object = None
        self.stream = stream
        config = self.config
        if config.block_size >= CALL_ROWS:
            raise BundleError(
                f"{bundle.path}: found blocks of {config.block_size} bytes, expected fewer than {CALL_ROWS}"
            )
        everything = max_bytes + 1 + DRAFT_SLACK + CALL_ROWS
        history = config.hash.context - 1
        self.parts = {
            part: DeviceGraph(executor, config.stacks[part], stream, history, slides=executor.slots < everything)
            for part, executor in executors.items()
        }
        self._encoder, self._global, self._decoder = (self.parts[part] for part in ("encoder", "global", "decoder"))
        self._tables = None if bundle.embeddings is None else HostEmbeddings(bundle.embeddings, config.hash)
        self._reads_states = config.decoder_input == "encoder"
        self._stores = self._make_stores(everything)
        self._drafted = DeviceMemory(stream.cuda, _ID_BYTES * (ROW_CAPACITY + 1))
        self._draft_results: tuple[DeviceMemory, PinnedMemory] | None = None
        self._ahead: tuple[int, Ids, Floats] | None = None
        self._open_from = 0

    def _make_stores(self, rows: int) -> dict[str, DeviceRows]:
        stores = {}
        for spec in tensors_bound_as(self._encoder.spec, Binding.LINK) + tensors_bound_as(
            self._global.spec, Binding.LINK
        ):
            stores[spec.name] = DeviceRows(self.stream, rows, spec)
        return stores

    # --- patcher -----------------------------------------------------------------------------------------------------

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """See `Backend.run_patcher`."""
        known = self._known_entropies(position, ids, visible_from)
        if known is not None:
            return known
        found = np.empty(len(ids), dtype=np.float32)
        for first, end in _cut(len(ids)):
            seen = None if visible_from is None else visible_from[first:end]
            self._queue_patcher(position + first, ids[first:end], end - first, seen)
            results = self.parts["patcher"].fetch()
            self.stream.synchronize()
            found[first:end] = results["entropy"][0, : end - first]
        return found

    def _known_entropies(self, position: int, ids: Ids, visible_from: Ids | None) -> Floats | None:
        """Entropies that the patcher was asked for ahead, if they are of these rows."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or visible_from is not None or ahead[0] != position or len(ids) > len(ahead[1]):
            return None
        return ahead[2][: len(ids)] if np.array_equal(ahead[1][: len(ids)], ids) else None

    def _queue_patcher(self, position: int, ids: Ids | None, rows: int, visible_from: Ids | None = None) -> None:
        """Queue the patcher on rows; without ``ids`` on those that lie on the device."""
        part, padding = self.parts["patcher"], padded(rows)
        slot = part.caches.place(_needed(position, part.window), position, padding)
        arrays = part.begin(padding, slot + padding)
        arrays["ids"][:] = 0
        write_controls(arrays, position, rows, slot, part.window, 0, visible_from)
        if ids is not None:
            arrays["ids"][0, :rows] = ids
            part.run()
        else:
            part.send()
            self.stream.copy(part.upload_address("ids"), self._drafted.address, rows * _ID_BYTES)
            part.launch()
        part.append_rows(padding, slot)

    # --- encoder -----------------------------------------------------------------------------------------------------

    def run_encoder(
        self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None
    ) -> None:
        """See `Backend.run_encoder`."""
        history = self.config.hash.context - 1
        rows, done = len(ids) - history, 0
        for first, end in _cut(rows):
            # Patches end in the order in which they begin.
            until = int(np.searchsorted(ends, position + end, side="right"))
            # What is pooled now or later begins here at the earliest.
            self._open_from = int(starts[done]) if done < len(starts) else int(ends[-1])
            seen = visible_from[first:end] if isinstance(visible_from, np.ndarray) else visible_from
            piece = ids[first : end + history]
            self._encode(position + first, piece, starts[done:until], ends[done:until], seen)
            if until > done:
                self._keep("patch_embeddings", self._encoder, done, until - done)
            done = until

    def _encode(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None) -> None:
        """Encode rows and pool the patches that end among them."""
        part, rows = self._encoder, len(ids) - (self.config.hash.context - 1)
        padding, count = padded(rows), len(starts)
        slot = part.caches.place(_needed(position, part.window), position, padding)
        pool_slot = self._place_in_pool(min(self._open_from, position), position, padding)
        arrays = part.begin(padding, slot + padding, patches=padded(max(1, count)))
        write_controls(arrays, position, rows, slot, part.window, 0, visible_from)
        self._write_ids(arrays, ids, rows)
        base = position - pool_slot
        for name, bounds, pad in (("patch_start", starts, position), ("patch_end", ends, position + 1)):
            # A patch that pads has a byte too: a mean of nothing would not be a number. Nobody reads it.
            arrays[name][:] = pad - base
            arrays[name][0, :count] = bounds - base
        arrays["pool_index"][:] = pool_slot
        part.run()
        part.append_rows(padding, slot, pool_slot)
        if self._reads_states:
            self._keep("states", part, position, rows)

    def _place_in_pool(self, origin: int, position: int, rows: int) -> int:
        pool = self._encoder.pool
        assert pool is not None
        try:
            return pool.place(origin, position, rows)
        except CapacityError as error:
            raise CapacityError(
                f"patch: found one that has {position - origin} bytes and is still open, expected at most "
                f"{pool.slots - CALL_ROWS - DRAFT_SLACK} (engines: fastblt compile --max-patch-bytes)"
            ) from error

    def _write_ids(self, arrays: Mapping[str, np.ndarray], ids: Ids, rows: int) -> None:
        """Ids with history, or the sums of the embeddings on the host."""
        if self._tables is None:
            arrays["ids"][:] = 0
            arrays["ids"][0, : len(ids)] = ids
        else:
            arrays["embedded"][0, rows:] = 0
            self._tables.sum_rows(ids, arrays["embedded"][0, :rows])

    def _keep(self, name: str, part: DeviceGraph, row: int, count: int) -> None:
        """Copy rows that a graph made to where all of them are."""
        store = self._stores[name]
        self.stream.copy(store.at(row), part.links[name].address, count * store.row_bytes)

    def _give(self, name: str, part: DeviceGraph, row: int, count: int) -> None:
        """Copy rows to where a graph reads them."""
        store = self._stores[name]
        self.stream.copy(part.links[name].address, store.at(row), count * store.row_bytes)

    # --- global ------------------------------------------------------------------------------------------------------

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """See `Backend.run_global`."""
        part = self._global
        for first, end in _cut(count):
            rows, position = end - first, first_patch + first
            padding = padded(rows)
            slot = part.caches.place(_needed(position, part.window), position, padding)
            arrays = part.begin(1, slot + padding, patches=padding)
            seen = None if visible_from is None else visible_from[first:end]
            write_controls(arrays, position, rows, slot, part.window, 0, seen)
            self._give("patch_embeddings", part, first, rows)
            part.run()
            part.append_rows(padding, slot)
            self._keep("latent_kv", part, position, rows)

    # --- decoder -----------------------------------------------------------------------------------------------------

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """See `Backend.run_decoder`."""
        pieces = list(_cut(len(ids), block))
        found = []
        for first, end in pieces:
            seen = None if visible_from is None else visible_from[first:end]
            inside = block if end == len(ids) else 0
            self._queue_decoder(position + first, ids[first:end], latents[first:end], inside, seen)
            results = self._decoder.fetch()
            alone = len(ids) == 1 and block == 0 and visible_from is None
            entropies = self._look_ahead(position + 1) if alone else None
            self.stream.synchronize()
            rows = _decoder_rows(results, end - first)
            found.append(rows if len(pieces) == 1 else rows.copy())
            if entropies is not None:
                self._ahead = (position + 1, rows.best.copy(), entropies[0, :1].copy())
        return found[0] if len(found) == 1 else _joined(found)

    def _look_ahead(self, position: int) -> Floats | None:
        """Queue the patcher on the byte that the decoder's one row finds most likely; entropies after a wait."""
        if "patcher" not in self.parts or position > self.max_bytes:
            return None
        self.stream.copy(self._drafted.address, self._decoder.result_address("best"), _ID_BYTES)
        self._queue_patcher(position, None, 1)
        return self.parts["patcher"].fetch()["entropy"]

    def _queue_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: int | Ids | None = None
    ) -> None:
        first, last = int(latents[0]), int(latents[-1])
        arrays, padding, slot = self._begin_decoder(position, len(ids), first, last, block, visible_from)
        arrays["latent_index"][:] = 0
        arrays["latent_index"][0, : len(ids)] = latents - latents[0]
        if not self._reads_states:
            arrays["ids"][:] = 0
            arrays["ids"][0, : len(ids)] = ids
        self._decoder.run()
        self._decoder.append_rows(padding, slot)

    def _begin_decoder(
        self, position: int, rows: int, first_latent: int, last_latent: int, block: int, visible_from: int | Ids | None
    ) -> tuple[dict[str, np.ndarray], int, int]:
        part, padding, count = self._decoder, padded(rows), last_latent + 1 - first_latent
        slot = part.caches.place(_needed(position, part.window), position, padding)
        arrays = part.begin(padding, slot + padding, latents=padded(count))
        write_controls(arrays, position, rows, slot, part.window, block, visible_from)
        self._give("latent_kv", part, first_latent, count)
        if self._reads_states:
            self._give("states", part, position, rows)
        return arrays, padding, slot

    # --- drafts ------------------------------------------------------------------------------------------------------

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `Backend.draft`; the encoder's time is that of queuing it, the wait is the decoder's."""
        if pick is None and not self._reads_states and count <= DRAFT_SLACK:
            return self._draft_on_device(position, int(ids[-1]), latent, count, visible_from or None)
        tokens, probabilities, context = [], [], ids.copy()
        none, index, more = np.empty(0, dtype=np.int64), np.array([latent], dtype=np.int64), True
        encoder_seconds = 0.0
        for step in range(count):
            if self._reads_states:
                began = perf_counter()
                self._encode(position + step, context, none, none, visible_from or None)
                encoder_seconds += perf_counter() - began
            self._queue_decoder(position + step, context[-1:], index, visible_from=visible_from or None)
            results = self._decoder.fetch()
            self.stream.synchronize()
            row = _decoder_rows(results, 1)
            token = int(row.best[0])
            probabilities.append(float(row.probability[0]))
            if pick is not None:
                token, more = pick(row)
            tokens.append(token)
            context[:-1] = context[1:]
            context[-1] = token
            if not more:
                break
        found = np.array(tokens, dtype=np.int64)
        return Drafted(found, np.array(probabilities, dtype=np.float32), encoder_seconds)

    def _draft_on_device(self, position: int, token: int, latent: int, count: int, visible_from: int | None) -> Drafted:
        """Greedy steps that follow one another on the device: each reads the byte that the one before chose."""
        part, stream = self._decoder, self.stream
        self._ahead = None
        logs: tuple[DeviceMemory, PinnedMemory] | None = None
        for step in range(count):
            arrays, padding, slot = self._begin_decoder(position + step, 1, latent, latent, 0, visible_from)
            arrays["latent_index"][:] = 0
            arrays["ids"][:] = token
            part.send()
            # The host knows the first token alone; the others are what the step before chose.
            ids, known = part.upload_address("ids"), self._drafted.address + step * _ID_BYTES
            stream.copy(*((ids, known) if step else (known, ids)), _ID_BYTES)
            part.launch()
            part.append_rows(padding, slot)
            logs = logs or self._draft_log(part.result_bytes)
            stream.copy(self._drafted.address + (step + 1) * _ID_BYTES, part.result_address("best"), _ID_BYTES)
            stream.copy(logs[0].address + step * part.result_bytes, part.results, part.result_bytes)
        assert logs is not None
        stream.download(logs[1].address, logs[0].address, count * part.result_bytes)
        entropies = self._look_at_draft(position, count, visible_from)
        stream.synchronize()
        steps = logs[1].bytes[: count * part.result_bytes].reshape(count, -1)
        rows = [_decoder_rows(part.result_views(step), 1) for step in steps]
        tokens = np.array([row.best[0] for row in rows], dtype=np.int64)
        if entropies is not None:
            read = np.concatenate([np.array([token], dtype=np.int64), tokens])
            self._ahead = (position, read, entropies[0, : count + 1].copy())
        return Drafted(tokens, np.array([row.probability[0] for row in rows], dtype=np.float32))

    def _look_at_draft(self, position: int, count: int, visible_from: int | None) -> Floats | None:
        """Queue the patcher on the token before a draft and on the draft; entropies after a wait."""
        if "patcher" not in self.parts or visible_from is not None or count + 1 > CALL_ROWS:
            return None
        self._queue_patcher(position, None, count + 1)
        return self.parts["patcher"].fetch()["entropy"]

    def _draft_log(self, result_bytes: int) -> tuple[DeviceMemory, PinnedMemory]:
        """Memory for the results of each step, on the device and on the host; made once."""
        if self._draft_results is None:
            size = (DRAFT_SLACK + 1) * aligned(result_bytes)
            self._draft_results = DeviceMemory(self.stream.cuda, size), PinnedMemory(self.stream.cuda, size)
        return self._draft_results

    # --- inspection --------------------------------------------------------------------------------------------------

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """See `fastblt.runtime.measure.verify.lockstep.Inspectable.tensor`."""
        if name in self._stores:
            store = self._stores[name]
            return self._read(store.at(first), (count, *store.row_shape), store.dtype)
        part, _, cache = name.partition(".")
        device = self.parts[part]
        spec = device.spec.input(cache)
        assert spec is not None, f"{part} has no {cache}"
        if first < device.caches.base:
            raise RewindError(f"{name}: found position {first}, expected at least {device.caches.base}")
        address = device.caches.address(device.cache_names.index(cache), first - device.caches.base)
        return self._read(address, (count, int(spec.shape[-1])), numpy_dtype(spec.dtype))

    def _read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        size = math.prod(shape) * dtype.itemsize
        pinned = PinnedMemory(self.stream.cuda, size)
        self.stream.download(pinned.address, address, size)
        self.stream.synchronize()
        return pinned.bytes.view(dtype).reshape(shape).copy()

    def set_tensor(self, name: str, first: int, values: NDArray[Any]) -> None:
        """See `fastblt.runtime.measure.verify.lockstep.Inspectable.set_tensor`."""
        store = self._stores[name]
        data = np.ascontiguousarray(values, dtype=store.dtype).reshape(-1).view(np.uint8)
        pinned = PinnedMemory(self.stream.cuda, data.size)
        pinned.bytes[:] = data
        self.stream.upload(store.at(first), pinned.address, data.size)
        self.stream.synchronize()

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """See `Backend.can_resume_from`."""
        whole = encodes_whole_patches(self.config)
        for name, part in self.parts.items():
            # Patches that are encoded whole wait until they close: the encoder goes on from the open one's beginning.
            first = open_patch if name == "encoder" and whole else position
            # The global transformer counts patches: how many stand before the position is not known here.
            needed = 0 if name == "global" else _needed(first, part.window)
            if part.caches.base > needed:
                return False
        pool = self._encoder.pool
        assert pool is not None
        return whole or pool.base <= open_patch

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """See `Backend.moved_bytes`."""
        return self.parts[part].moved_bytes(position, padded(rows))


def _needed(position: int, window: int | None) -> int:
    """First position that a row at ``position`` sees."""
    return 0 if window is None else max(0, position - window + 1)


def _cut(rows: int, block: int = 0) -> Iterator[tuple[int, int]]:
    """Pieces of at most `CALL_ROWS` rows; the last ``block`` rows stay in one."""
    first = 0
    while rows - first > CALL_ROWS:
        end = min(first + CALL_ROWS, rows - block)
        yield first, end
        first = end
    yield first, rows


def _decoder_rows(results: Mapping[str, np.ndarray], count: int) -> DecoderRows:
    best, probability, entropy, logits = (results[name][0, :count] for name in DecoderRows._fields)
    return DecoderRows(best, probability, entropy, logits)


def _joined(pieces: list[DecoderRows]) -> DecoderRows:
    """Rows of several calls."""
    return DecoderRows(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))
