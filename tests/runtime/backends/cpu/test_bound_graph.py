"""The bindings of a graph: their addresses, how many are made, and the views that they have."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from fakes.onnx_backends import MANY, OpenBackend, all_buffers, open_onnx, open_sequence, random_text

from fastblt.models.tokens import encode
from fastblt.runtime.backends.cpu import bound_graph
from fastblt.runtime.backends.cpu.bound_graph import Binding
from fastblt.runtime.backends.cpu.buffers import VIEW_SLOTS, Buffer
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import GraphSpec, TensorSpec
from fastblt.runtime.sequence.session import Session


def owned(buffer: Buffer) -> range:
    """Return the addresses of a buffer."""
    return range(buffer.address, buffer.address + buffer.array.nbytes)


class SpiedBinding(Binding):
    """Notes what is bound where."""

    made: int = 0
    points: list[tuple[str, bool, tuple[int, ...], int, Buffer]]

    def __init__(self, session: Any, spec: Any) -> None:
        super().__init__(session, spec)
        type(self).made += 1

    def point(self, name: str, shape: tuple[int, ...], buffer: Buffer, row: int = 0) -> None:
        super().point(name, shape, buffer, row)
        self.points.append((name, name in self._inputs, shape, buffer.at(row), buffer))


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> type[SpiedBinding]:
    """Return the class that bindings are made of from now on."""
    monkeypatch.setattr(SpiedBinding, "made", 0)
    monkeypatch.setattr(SpiedBinding, "points", [], raising=False)
    monkeypatch.setattr(bound_graph, "Binding", SpiedBinding)
    return SpiedBinding


def test_addresses_stay_when_generating_and_rewinding(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    sequence = open_sequence(open_backend, decoder_input, 400)
    before = all_buffers(sequence)
    addresses = {name: buffer.address for name, buffer in before.items()}
    assert len(addresses) > 25
    assert len(set(addresses.values())) == len(addresses)
    runtime = BltRuntime(sequence.backend)
    runtime.generate(random_text(100, 4), 120, method="ar", stop_at_eos=False)
    with runtime.session() as session:
        assert session.sequence is sequence
        session.append(encode(random_text(150, 5), bos=False))
        for keep in (120, 60, 1):
            session.score()
            session.rewind(keep)
            session.append(encode(random_text(40, keep), bos=False))
    runtime.generate(b"", 60, method="s:8", stop_at_eos=False)
    after = all_buffers(sequence)
    assert {name: buffer.address for name, buffer in after.items()} == addresses
    assert all(after[name] is before[name] for name in before)
    assert all(int(buffer.array.ctypes.data) == buffer.address for buffer in after.values())
    names = set()
    for name, _, shape, address, buffer in spied.points:
        assert buffer in before.values()
        assert address in owned(buffer)
        size = int(np.prod(shape)) * buffer.array.itemsize
        assert address + size - 1 in owned(buffer), f"{name} {shape} is bound beyond its buffer"
        names.add(name)
    assert "key_0" in names


def test_caches_have_one_address_as_input_and_output(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    backend = open_onnx(open_backend, decoder_input, 200)
    BltRuntime(backend).generate(random_text(60, 6), 60, method="s:4", stop_at_eos=False)
    inputs = [p for p in spied.points if p[1] and (p[0].startswith(("key_", "value_")) or p[0] == "pool")]
    outputs = [p for p in spied.points if not p[1] and p[0].endswith("_out")]
    assert len(inputs) > 20
    plain = [(name, *rest) for name, _, *rest in inputs]
    assert plain == [(name.removesuffix("_out"), *rest) for name, _, *rest in outputs]


def test_bindings_are_far_fewer_than_calls_when_512_bytes_are_generated(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    runtime = BltRuntime(open_onnx(open_backend, decoder_input, 700))
    for method, most in (("ar", 8), ("s:8", 2.5)):
        spied.made = 0
        stats = runtime.generate(b"a prompt", 512, method=method, stop_at_eos=False).stats
        calls = sum(stats.nfe.values())
        assert stats.new_bytes > 500
        assert 0 < spied.made * most < calls, f"{method}: {spied.made} bindings for {calls} calls"


def test_bindings_are_kept_when_the_same_call_is_made_again(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    backend = open_onnx(open_backend, decoder_input, 200)
    session = Session(backend)
    session.append(encode(random_text(39, 8), bos=False))
    session.score()
    made = None
    for token in range(4, 24):
        session.append([token])
        session.score()
        session.rewind(40)
        made = spied.made if made is None else made
    # One more for a token that closes a patch, perhaps: the encoder and the global do not run for the others.
    assert spied.made - made <= 2


def test_bindings_are_few_however_many_shapes_occur(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_onnx(open_backend, decoder_input, 300)
    expected = BltRuntime(backend).generate(b"a prompt", 120, method="s:8", stop_at_eos=False).data
    monkeypatch.setattr(bound_graph, "BINDINGS_KEPT", 5)
    sequence, spied.made = open_sequence(open_backend, decoder_input, 300), 0
    assert BltRuntime(sequence.backend).generate(b"a prompt", 120, method="s:8", stop_at_eos=False).data == expected
    kept = [len(graph._bindings) for graph in sequence.graphs.values()]
    assert max(kept) == 5
    assert spied.made > sum(kept)


def test_interrupt_while_memory_is_bound_leaves_no_binding_half_made(
    open_backend: OpenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_sequence(open_backend, "embedding", 200).backend
    expected = BltRuntime(open_onnx(open_backend, "embedding", 200)).generate(b"abc", 12, method="ar").data
    point, left = Binding.point, 0

    def interrupted(binding: Binding, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        point(binding, *arguments)

    monkeypatch.setattr(Binding, "point", interrupted)
    for at in range(1, 30):
        left = at
        with pytest.raises(KeyboardInterrupt):
            BltRuntime(backend).generate(b"abc", 12, method="ar")
    assert BltRuntime(backend).generate(b"abc", 12, method="ar").data == expected


def test_views_bound_in_a_generation_grow_with_the_text_and_not_with_the_capacity(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    sequence = open_sequence(open_backend, decoder_input, MANY)
    bound = {}
    for length in (20, 400):
        spied.points.clear()
        BltRuntime(sequence.backend).generate(random_text(length, 11), 30, method="ar", stop_at_eos=False)
        slots: dict[int, set[int]] = {}
        for name, _, shape, _, buffer in spied.points:
            if name == "key_0":
                slots.setdefault(buffer.address, set()).add(shape[2])
        bound[length] = {
            part: max(slots[graph.caches.buffers["key_0"].address]) for part, graph in sequence.graphs.items()
        }
    # The prompt is one call, whose rows all have to be seen.
    assert max(bound[400].values()) <= 400 + 30 + 2 * VIEW_SLOTS
    assert max(bound[20].values()) <= 20 + 30 + 2 * VIEW_SLOTS
    assert bound[400]["global"] > bound[20]["global"]


def test_every_address_is_inside_its_buffer() -> None:
    """Whether the tensor was bound before or not, to this buffer or another, and whatever its shape was."""
    session = MagicMock()
    spec = GraphSpec("part.onnx", (TensorSpec("x", "float32", (1, "rows"), "states"),), (), 0)
    large, small = Buffer(8, (), np.dtype(np.float32)), Buffer(3, (), np.dtype(np.float32))
    binding = Binding(session, spec)
    for shape, buffer, row in (
        ((1, 9), large, 0),
        ((1, 4), large, 5),
        ((1, 4), large, -1),
        ((1, 4), Buffer(8, (), np.dtype(np.int64)), 0),
    ):
        with pytest.raises(ValueError, match=r"x: float32 .* is not inside its buffer"):
            binding.point("x", shape, buffer, row)
    binding.point("x", (1, 4), large, 0)
    binding.point("x", (1, 4), large, 4)
    for shape, buffer, row in (((1, 4), large, 5), ((1, 4), large, -1), ((1, 8), large, 1), ((1, 4), small, 0)):
        with pytest.raises(ValueError, match=r"x: float32 .* is not inside its buffer"):
            binding.point("x", shape, buffer, row)
    assert session.io_binding().bind_input.call_count == 2


def test_interrupt_after_memory_is_bound_lets_it_be_bound_again() -> None:
    session = MagicMock()
    spec = GraphSpec("part.onnx", (TensorSpec("x", "float32", (1, "rows"), "states"),), (), 0)
    buffer, bind = Buffer(8, (), np.dtype(np.float32)), session.io_binding().bind_input
    binding = Binding(session, spec)
    binding.point("x", (1, 4), buffer, 0)
    bind.side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        binding.point("x", (1, 4), buffer, 2)
    bind.side_effect = None
    binding.point("x", (1, 4), buffer, 0)
    assert [call.args[-1] - buffer.address for call in bind.call_args_list] == [0, 8, 0]
