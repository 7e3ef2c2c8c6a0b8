"""Calls of a batch that do not fit one call of the graph: the limits, and results that no other group overwrites."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fakes.batches import check_same, rounds_of, texts_of, write_alone, write_together
from fakes.cuda import FakeCuda

from fastblt.export import engine_compiler
from fastblt.runtime.backends.batching import PatcherCall
from fastblt.runtime.backends.gpu import batch_limits, slot
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.batch import DeviceBatch
from fastblt.runtime.backends.gpu.batch_graph import BatchGraph
from fastblt.runtime.backends.gpu.cuda import DeviceMemory
from fastblt.runtime.backends.gpu.places import Exchange
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.blt_runtime import BltRuntime

Load = Callable[..., DeviceBackend]


@pytest.mark.parametrize(("form", "lengths"), [("BLT-D sessions", [20, 20, 5, 5]), ("BLT-D engines", [5] * 18)])
def test_no_group_of_calls_overwrites_the_results_of_another(load: Load, form: str, lengths: list[int]) -> None:
    backend, random = load(form, len(lengths)), np.random.default_rng(0)
    sequences, batch = [backend.new_sequence() for _ in lengths], backend.new_batch(len(lengths))
    calls = [PatcherCall(0, random.integers(4, 260, length), None) for length in lengths]
    answers = batch.run(list(zip(sequences, calls, strict=True)))
    assert max(answer.calls for answer in answers) <= 1 / 2
    for sequence, call, answer in zip(sequences, calls, answers, strict=True):
        np.testing.assert_allclose(answer.result, sequence.run_patcher(*call), rtol=1e-5)
    batch.close()


def test_call_binds_no_more_latents_than_its_kernels_count(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(4)
    backend, alone = load("BLT-D sessions", 4), BltRuntime(load("BLT-D sessions", 1))
    elements = backend.slots[0].rows["latent_kv"].elements
    monkeypatch.setattr(batch_limits, "MOST_ELEMENTS", 4 * elements - 1)
    runtime = BltRuntime(backend)
    with rounds_of(runtime) as scheduler:
        assert {graph.together for graph in backend.batches[0].graphs.values()} == {2}
        check_same(write_together(runtime, scheduler, texts, "s:4"), write_alone(alone, texts, "s:4"), 1e-5)
    monkeypatch.setattr(batch_limits, "MOST_ELEMENTS", 2 * elements - 1)
    with pytest.raises(CapacityError, match=r"^max_bytes: found 600, .* expected at most \d+, which a call can count"):
        backend.new_batch(4)


def test_text_alone_reads_copies_of_latents_that_kernels_cannot_count(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(2)
    expected = write_alone(BltRuntime(load("BLT-D sessions", 1)), texts, "s:4", "ar")
    monkeypatch.setattr(slot, "MOST_ELEMENTS", 1000)
    backend = load("BLT-D sessions", 1)
    assert not backend.slots[0].graphs["decoder"].whole
    check_same(write_alone(BltRuntime(backend), texts, "s:4", "ar"), expected, 1e-5)


def test_engines_bind_no_more_latents_than_their_kernels_count(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load("BLT-D engines", 1).manifest.graphs["decoder"]
    latents = spec.input("latent_kv")
    assert latents is not None
    elements = int(np.prod([int(size) for size in latents.shape[1:]]))
    monkeypatch.setattr(engine_compiler, "MOST_ELEMENTS", 1001 * elements - 1)
    profiles = engine_compiler._profiles(spec, 0, 700, {"slots": (64, 64, 64)}, 16)
    assert {profile.shapes["latent_kv"][2][0] for profile in profiles} == {1000}
    assert {profile.shapes["latent_kv"][1][0] for profile in profiles} == {700}


def test_place_is_emptied_behind_what_moves_out_of_it(load: Load, gpu: FakeCuda) -> None:
    gpu.late_memset = False
    backend = load("BLT-D sessions", 3)
    first, *_, last = (backend.new_sequence() for _ in range(3))
    ids = np.arange(5, dtype=np.int64)
    last.run_patcher(0, ids)
    expected = last.tensor("patcher.key_0", 0, 5)
    first.close()
    exchange = Exchange(backend)
    exchange.swap(first._slot, last.slot)
    assert first._slot.place == 2
    other = backend.new_sequence()
    assert other.slot.place == 2
    np.testing.assert_array_equal(last.tensor("patcher.key_0", 0, 5), expected)
    assert not other.tensor("patcher.key_0", 0, 5).any()


def _spoil(backend: DeviceBackend, memory: DeviceMemory) -> None:
    backend.stream.write(np.full(memory.size, 255, np.uint8), (memory.address, memory.size))


def _is_empty(backend: DeviceBackend, graph: BatchGraph, name: str) -> bool:
    memory = graph.links[name]
    return not backend.stream.read((memory.address, memory.size)).any()


@pytest.mark.parametrize(("part", "name"), [("decoder", "states"), ("global", "patch_embeddings")])
def test_what_one_call_leaves_reaches_no_padding_rows_of_another_text(load: Load, part: str, name: str) -> None:
    backend = load("BLT engines", 4)
    sequences = [backend.new_sequence() for _ in range(4)]
    batch = backend.new_batch(4)
    assert isinstance(batch, DeviceBatch)
    graph = batch.graphs[part]
    graph.choose(range(4), 8)
    for places, rows in ((range(4), 16), (range(2), 16), (range(2, 4), 16)):
        _spoil(backend, graph.links[name])
        graph.choose(places, rows)
        assert _is_empty(backend, graph, name)
    _spoil(backend, graph.links[name])
    exchange = Exchange(backend)
    exchange.swap(sequences[0].slot, sequences[3].slot)
    assert _is_empty(backend, graph, name)
    batch.close()
