"""The views of the caches' buffers: what rows see, and little more."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.buffers import VIEW_SLOTS, KvBuffers
from fastblt.runtime.backends.protocol import ROW_CAPACITY


@examples(300)
@given(
    position=st.integers(0, 5000),
    rows=st.integers(1, ROW_CAPACITY),
    window=st.none() | st.integers(1, 600),
    spare=st.integers(0, 20_000),
)
def test_view_holds_what_rows_see_and_little_more(position: int, rows: int, window: int | None, spare: int) -> None:
    capacity = position + rows + spare
    buffers = KvBuffers(["key_0", "value_0"], capacity, 8, np.dtype(np.float16), window)
    view = buffers.view(position, rows)
    first = 0 if window is None else max(0, position - window + 1)
    assert 0 <= view.start <= first
    assert position + rows <= view.end <= len(buffers.buffers["key_0"].array)
    assert view.slots <= position + rows - first + 2 * VIEW_SLOTS
    # The same whatever the capacity.
    tight = KvBuffers(["key_0", "value_0"], position + rows, 8, np.dtype(np.float16), window)
    assert tight.view(position, rows) == view
    assert buffers.moved_bytes(position, rows) == view.slots * 2 * 8 * 2


def test_prompt_is_read_in_the_windows_when_rows_are_few(onnx_backend: OnnxRuntimeBackend) -> None:
    graphs = onnx_backend.new_sequence().graphs
    for part in ("patcher", "encoder", "decoder"):
        window = graphs[part].window
        assert window is not None
        assert graphs[part].caches.view(800, 1).slots <= window + 2 * VIEW_SLOTS
    assert graphs["global"].window is None
