"""Allocates the host memory that graphs are bound to, once, and addresses it by pointer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.backends.protocol import DRAFT_SLACK, ROW_CAPACITY

_INT64 = np.dtype(np.int64)
#: Bound views of caches begin and end at multiples of this many slots, so that a view serves many steps.
VIEW_SLOTS = 64
#: Views of the encoder's pool end at multiples of this many slots, which bounds the number of shapes.
POOL_STEP = 8
#: Bindings of each graph that a sequence keeps: those used last. In texts of all methods and lengths, the encoder and
#: the global, whose shapes vary most, bind anew in 3 calls of 100 that would not if all were kept.
BINDINGS_KEPT = 128
#: Bytes that one takes, at most: 12,000 to 24,000 have been measured.
BINDING_BYTES = 24_000


class Buffer:
    """Holds ``rows`` equal rows of zeroed memory on the host.

    The memory is reserved, and the system commits it page by page as a sequence reaches it. Zeros matter: a slot that
    the mask hides is still multiplied by a softmax weight of 0, and 0 * NaN would be NaN.

    Attributes:
        array: the contents, [rows, *row_shape].
        address: of the first row.
        row_bytes: size of a row.
        bytes: size of all rows.
    """

    def __init__(self, rows: int, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.row_shape = row_shape
        self.row_bytes = int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize
        self.bytes = rows * self.row_bytes
        self.array: NDArray[Any] = np.zeros((rows, *row_shape), dtype=dtype)
        self.address = int(self.array.ctypes.data)

    def at(self, row: int) -> int:
        """Return the address of a row."""
        return self.address + row * self.row_bytes


class View(NamedTuple):
    """Describes the contiguous range of cache slots that a call is bound to."""

    start: int
    end: int

    @property
    def slots(self) -> int:
        """Return the number of slots."""
        return self.end - self.start


class KvBuffers:
    """Holds the caches of one graph; slot = position, so rewinding needs no copies and nothing is ever moved."""

    def __init__(self, names: list[str], capacity: int, dim: int, dtype: np.dtype[Any], window: int | None) -> None:
        slots = _whole_views(capacity)
        self.buffers = {name: Buffer(slots, (dim,), dtype) for name in names}
        self.dim = dim
        self.slots = slots
        self.window = window
        self.slot_bytes = len(names) * dim * dtype.itemsize

    def view(self, position: int, rows: int) -> View:
        """Return the slots that ``rows`` rows at ``position`` may see, widened to multiples of `VIEW_SLOTS`."""
        return View(*self._bounds(position, rows))

    def _bounds(self, position: int, rows: int) -> tuple[int, int]:
        first = first_visible(position, self.window)
        return first // VIEW_SLOTS * VIEW_SLOTS, -(-(position + rows) // VIEW_SLOTS) * VIEW_SLOTS

    def moved_bytes(self, position: int, rows: int) -> int:
        """Return the bytes of all caches that a call reads."""
        start, end = self._bounds(position, rows)
        return (end - start) * self.slot_bytes


def _whole_views(slots: int) -> int:
    """Return ``slots`` rounded up to a multiple of `VIEW_SLOTS`."""
    return -(-slots // VIEW_SLOTS) * VIEW_SLOTS


class ControlInput:
    """Holds a small int64 input [1, n] that the host writes before each call."""

    def __init__(self) -> None:
        self.buffer = Buffer(1, (ROW_CAPACITY,), _INT64)
        self.values = self.buffer.array[0]


class CallBuffers:
    """Holds the inputs and outputs of all graphs, except caches and the control inputs that place rows.

    Args:
        config: the model's.
        kind: type of activations.
        capacity: number of positions of the longest sequence.
    """

    def __init__(self, config: BltConfig, kind: np.dtype[Any], capacity: int) -> None:
        dim, floats = config.decoder.dim, np.dtype(np.float32)
        self.ids, self.latent_index, self.best = ControlInput(), ControlInput(), ControlInput()
        self.patch_start, self.patch_end, self.pool_index = ControlInput(), ControlInput(), ControlInput()
        self.context_ids = Buffer(1, (ROW_CAPACITY + config.hash.context,), _INT64)
        self.embedded = Buffer(ROW_CAPACITY, (dim,), kind)
        self.entropies = Buffer(ROW_CAPACITY, (), floats)
        self.probability = Buffer(ROW_CAPACITY, (), floats)
        self.entropy = Buffer(ROW_CAPACITY, (), floats)
        self.logits = Buffer(ROW_CAPACITY, (config.vocab_size,), floats)
        self.patch_embeddings = Buffer(ROW_CAPACITY, (config.patch_dim,), kind)
        self.latents = Buffer(ROW_CAPACITY, (config.global_transformer.dim,), kind)
        # These hold every position or patch of the sequence.
        self.states = Buffer(capacity if config.decoder_reads_states else 1, (dim,), kind)
        self.pool = Buffer(capacity + POOL_STEP, (3 * dim,), kind)
        self.latent_kv = Buffer(capacity, (config.decoder.layers, 2, config.cross_attn_k * dim), kind)


def capacity_of(max_bytes: int) -> int:
    """Return the positions that buffers have room for: BOS, the text, and a draft past its end."""
    return max_bytes + 1 + DRAFT_SLACK


def buffer_bytes(config: BltConfig, item: int, max_bytes: int) -> int:
    """Return the bytes that a sequence takes at most: caches, what passes between graphs and the host, and bindings.

    Args:
        config: the model's.
        item: bytes of an activation; the patcher's are fp32.
        max_bytes: longest prompt plus new bytes.
    """
    capacity, dim = capacity_of(max_bytes), config.decoder.dim
    slots = _whole_views(capacity)
    caches = sum(
        2 * stack.layers * stack.dim * slots * (4 if part == "patcher" else item)
        for part, stack in config.stacks.items()
    )
    states = dim * (capacity if config.decoder_reads_states else 1)
    sequence = states + 3 * dim * (capacity + POOL_STEP) + config.latent_kv_dim * capacity
    call = ROW_CAPACITY * (dim + config.patch_dim + config.global_transformer.dim)
    results = ROW_CAPACITY * (3 + config.vocab_size) * 4
    graphs = len(config.graph_stacks)
    controls = (6 + 4 * graphs) * ROW_CAPACITY + ROW_CAPACITY + config.hash.context
    bindings = graphs * BINDINGS_KEPT * BINDING_BYTES
    return caches + item * (sequence + call) + results + 8 * controls + bindings
