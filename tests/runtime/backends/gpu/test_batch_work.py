"""What a batch asks of the driver: one launch for many sequences, no copy of a cache, memory that was announced."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.batches import FORMS, load_form, rounds_of, texts_of
from fakes.cuda import FakeCuda, cudaMemcpyKind
from fakes.earlier_bundles import of_one_sequence

from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.runtime.backends.batching import BatchingBackend, DraftCall, PatcherCall
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.batch_graph import covering
from fastblt.runtime.backends.gpu.batch_limits import batch_bytes
from fastblt.runtime.backends.gpu.sequence import DeviceSequence
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.bundle.tensorrt_library import TensorRtLibrary

Load = Callable[..., DeviceBackend]


class Counted:
    """Counts what is queued on the device."""

    def __init__(self, gpu: FakeCuda, backend: DeviceBackend) -> None:
        arrays = [graph.caches.array for graph in backend.slots[0].graphs.values()]
        self._caches = [(array.address(0), array.memory.size) for array in arrays]
        self._gpu, self._launches, self._waits = gpu, gpu.launches, gpu.waits
        self.uploads = self.downloads = self.cache_copies = 0

    def copy(self, source: int, kind: int) -> None:
        self.uploads += kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        self.downloads += kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cache_copies += any(first <= source < first + size for first, size in self._caches)

    @property
    def launches(self) -> int:
        return self._gpu.launches - self._launches

    @property
    def waits(self) -> int:
        return self._gpu.waits - self._waits


@contextmanager
def counting(gpu: FakeCuda, backend: DeviceBackend) -> Iterator[Counted]:
    found, copy = Counted(gpu, backend), gpu.cudaMemcpy2DAsync
    with pytest.MonkeyPatch.context() as patch:

        def counted(
            dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: int
        ) -> Any:
            found.copy(src, kind)
            return copy(dst, dpitch, src, spitch, width, height, kind, stream)

        patch.setattr(gpu, "cudaMemcpy2DAsync", counted)
        yield found


@pytest.mark.parametrize("form", ["BLT-D sessions", "BLT engines"])
def test_no_cache_is_copied_while_texts_grow(load: Load, gpu: FakeCuda, form: str) -> None:
    backend = load(form, 4)
    runtime = BltRuntime(backend)
    with rounds_of(runtime) as scheduler:
        streams = [runtime.stream(text, 40, method="s:4") for text, _ in texts_of(4)]
        scheduler.step(streams)
        with counting(gpu, backend) as counted:
            for _ in range(5):
                scheduler.step(streams)
        assert counted.uploads > 10
        assert counted.cache_copies == 0
        for stream in streams:
            stream.close()


def test_call_of_eight_is_one_upload_one_launch_one_download(load: Load, gpu: FakeCuda) -> None:
    backend = load("BLT-D engines", 8)
    sequences, batch = [backend.new_sequence() for _ in range(8)], backend.new_batch(8)
    for _ in range(2):  # the second one is recorded
        ask(batch, sequences)
    with counting(gpu, backend) as counted:
        answers = ask(batch, sequences)
    assert (counted.uploads, counted.launches, counted.downloads, counted.waits) == (1, 1, 1, 1)
    assert {answer.calls for answer in answers} == {1 / 8}
    weights = backend.executors["patcher"].spec.weight_bytes
    assert answers[0].moved_bytes == sequences[0].moved_bytes("patcher", 0, 5) - weights * 7 / 8
    context = np.ones(backend.config.hash.context, dtype=np.int64)
    drafts = [(sequence, DraftCall(5, context, 0, 4 + place % 2, None, 0)) for place, sequence in enumerate(sequences)]
    for _ in range(2):
        batch.run(drafts)
    with counting(gpu, backend) as counted:
        drafted = batch.run(drafts)
    assert (counted.launches, counted.waits) == (1, 1), "as one graph, with the patcher behind it"
    assert [len(answer.result.tokens) for answer in drafted] == [4, 5] * 4
    batch.close()


def ask(batch: Any, sequences: list[DeviceSequence]) -> Any:
    ids = np.arange(5, dtype=np.int64)
    return batch.run([(sequence, PatcherCall(0, ids, None)) for sequence in sequences])


def test_sequences_move_closer_only_after_some_have_left(load: Load, gpu: FakeCuda) -> None:
    backend = load("BLT-D sessions", 8)
    sequences, batch = [backend.new_sequence() for _ in range(8)], backend.new_batch(8)
    ask(batch, sequences)
    left = [sequences[place] for place in (6, 3)]
    for sequence in (one for one in sequences if one not in left):
        batch.leave(sequence)
    expected = {one: one.tensor("patcher.key_0", 0, 5).tobytes() for one in sequences}
    with counting(gpu, backend) as counted:
        ask(batch, left)
    assert counted.cache_copies > 0
    assert {one.slot.place for one in left} == {0, 1}
    assert [one.slot.place for one in sequences[4:6]] == [4, 5], "others stay where they are"
    assert {one: one.tensor("patcher.key_0", 0, 5).tobytes() for one in sequences} == expected
    with counting(gpu, backend) as counted:
        ask(batch, left)
    assert counted.cache_copies == 0
    for place, sequence in enumerate(backend.slots):
        assert sequence.place == place
    batch.close()


@pytest.mark.parametrize("form", ["BLT engines", "BLT-D sessions", "lowered BLT engines"])
def test_memory_is_announced_and_given_back(load: Load, gpu: FakeCuda, form: str) -> None:
    def allocated() -> int:
        return sum(each.size for each in gpu.allocations.values() if each.kind == "device")

    backend = load(form, 3)
    before = allocated()
    batch = backend.new_batch(3)
    assert isinstance(backend, BatchingBackend)
    assert allocated() - before == batch_bytes(backend, 4)
    batch.close()
    batch.close()
    assert allocated() == before
    gpu.used_by_others = gpu.memory - before - batch_bytes(backend, 4) + 1
    with pytest.raises(CapacityError, match=r"^batch: found .* free on the GPU, expected .* of 4 sequences"):
        backend.new_batch(3)


def test_bundles_and_engines_of_earlier_versions_are_refused_with_the_command(
    tiny_bundle: Path, tmp_path: Path, gpu: FakeCuda
) -> None:
    old = of_one_sequence(tiny_bundle, tmp_path / "old")
    backend = load_form(FORMS["BLT-D sessions"], old, gpu, 2)
    with pytest.raises(BundleError, match=r"entropy\.onnx: found a graph of an earlier .* fastblt export$"):
        backend.new_batch(2)
    shutil.copytree(tiny_bundle, tmp_path / "new")
    library = TensorRtLibrary("tensorrt-rtx", sys.modules["tensorrt_rtx"])
    compile_bundle(tmp_path / "new", library, CompileRequest((89,), (600,)))
    backend = load_form(FORMS["BLT-D engines"], tmp_path / "new", gpu, 2)
    with pytest.raises(BundleError, match=r"\.engine: found .* at most 1 seq.* expected 2: .* --sequences 2$"):
        backend.new_batch(2)


@pytest.mark.parametrize(
    ("places", "count", "expected"),
    [
        ([3], 8, range(3, 4)),
        ([2, 3], 8, range(2, 4)),
        ([3, 4], 8, range(8)),
        ([0, 2], 3, range(3)),
        ([5, 6], 7, range(4, 7)),
        ([0, 15], 16, range(16)),
    ],
)
def test_range_of_places_is_a_power_of_two_cut_at_the_end(places: list[int], count: int, expected: range) -> None:
    assert covering(places, count) == expected


def test_batch_of_a_warm_backend_binds_nothing_while_texts_grow(load: Load) -> None:
    backend = load("BLT-D engines", 2)
    backend.warm_up()
    runtime = BltRuntime(backend)
    with rounds_of(runtime) as scheduler:

        def classes() -> list[int]:
            alone = [len(graph._classes) for slot in backend.slots for graph in slot.graphs.values()]
            return [*alone, *(len(graph._classes) for graph in backend.batches[0].graphs.values())]

        bound = classes()
        assert not any(buffer.live for array in backend.memory.arrays.values() for buffer in array.held)
        streams = [runtime.stream(text, 20, method="s:4") for text, _ in texts_of(2)]
        for _ in range(5):
            scheduler.step(streams)
        assert classes() == bound
        for stream in streams:
            stream.close()
