"""What a batch refuses, and how it goes on where one of its texts has no room, or where it cannot be made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes.batches import FORMS, check_same, load_form, rounds_of, texts_of, write_alone, write_together
from fakes.cuda import FakeCuda
from fakes.tensorrt_engine import MEMORY_BYTES

from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.runtime.backends.batching import DraftCall, EncoderCall, PatcherCall
from fastblt.runtime.backends.gpu import cuda
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.batch import DeviceBatch
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import CapacityError, DecoderRows
from fastblt.runtime.batching.round_scheduler import round_schedulers
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.bundle.tensorrt_library import TensorRtLibrary

Load = Callable[..., DeviceBackend]


def test_sequences_of_others_and_closed_ones_are_refused(load: Load) -> None:
    backend, other = load("BLT-D sessions", 2), load("BLT-D sessions", 1)
    batch, call = backend.new_batch(2), PatcherCall(0, np.array([1]), None)
    with pytest.raises(ValueError, match="sequence: found one of another backend"):
        batch.run([(other.new_sequence(), call)])
    closed = backend.new_sequence()
    closed.close()
    with pytest.raises(ValueError, match="sequence: found a closed one"):
        batch.run([(closed, call)])
    batch.close()
    with pytest.raises(ValueError, match="batch: found a closed one"):
        batch.run([(backend.new_sequence(), call)])


def test_batch_that_cannot_be_warmed_up_is_closed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load("BLT-D sessions", 2)
    backend.warm_up()

    def fail(_: DeviceBatch) -> None:
        raise GraphError("decoder.onnx: failed")

    monkeypatch.setattr(DeviceBatch, "warm_up", fail)
    with pytest.raises(GraphError):
        backend.new_batch(2)
    assert backend.batches == []


def test_draft_without_room_is_refused_before_another_is_picked(load: Load) -> None:
    backend = load("BLT engines", 2)
    sequences, batch = [backend.new_sequence() for _ in range(2)], backend.new_batch(2)
    context, picked = np.ones(backend.config.hash.context, dtype=np.int64), []

    def pick(rows: DecoderRows) -> tuple[int, bool]:
        picked.append(rows)
        return 7, True

    calls = [DraftCall(position, context, 0, 4, pick, 0) for position in (5, 590)]
    with pytest.raises(CapacityError, match=r"^patch: found one that has 590 bytes"):
        batch.run(list(zip(sequences, calls, strict=True)))
    assert picked == []
    batch.close()


def test_text_without_room_for_padding_stops_sharing_only_while_it_is_open(load: Load) -> None:
    backend = load("BLT engines", 4)
    sequences, batch = [backend.new_sequence() for _ in range(3)], backend.new_batch(4)
    history = backend.config.hash.context - 1
    ids, bounds = np.ones(history + 3, dtype=np.int64), (np.array([0]), np.array([3]))
    calls = [(sequence, EncoderCall(0, ids, *bounds, None)) for sequence in sequences]
    assert {answer.calls for answer in batch.run(calls)} == {1 / 3}
    sequences[1].slot.graphs["encoder"].caches.end = 590
    others = calls[::2]
    assert {answer.calls for answer in batch.run(others)} == {1.0}
    sequences[1].close()
    assert {answer.calls for answer in batch.run(others)} == {1 / 2}
    batch.close()


def test_rows_that_are_too_far_apart_for_the_driver_are_copied_one_by_one(
    load: Load, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(3)
    expected = write_alone(BltRuntime(load("BLT-D sessions", 1)), texts, "s:4")
    gpu.most_pitch = 50_000
    monkeypatch.setattr(cuda, "MOST_PITCH", gpu.most_pitch)
    backend = load("BLT-D sessions", 3)
    assert max(array.pitch for array in backend.memory.arrays.values()) > gpu.most_pitch
    runtime = BltRuntime(backend)
    with rounds_of(runtime) as scheduler:
        check_same(write_together(runtime, scheduler, texts, "s:4"), expected, 1e-5)


def test_row_floor_of_more_rows_than_calls_of_several_have_is_refused(load: Load) -> None:
    backend = load("BLT-D engines", 2, 32)
    with pytest.raises(BundleError, match=r"^row floor: found 32, expected at most 16, .* \(--row-floor\)$"):
        backend.new_batch(2)
    load("BLT-D sessions", 2, 32).new_batch(2).close()


def test_engines_for_two_sequences_are_called_by_two(tiny_bundle: Path, tmp_path: Path, gpu: FakeCuda) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "two")
    library = TensorRtLibrary("tensorrt-rtx", sys.modules["tensorrt_rtx"])
    compile_bundle(tmp_path / "two", library, CompileRequest((89,), (600,), sequences=2))
    backend, alone = (load_form(FORMS["BLT-D engines"], tmp_path / "two", gpu, count) for count in (4, 1))
    runtime, texts = BltRuntime(backend), texts_of(4)
    with rounds_of(runtime) as scheduler:
        assert scheduler.shares_calls
        assert {graph.together for graph in backend.batches[0].graphs.values()} == {2}
        check_same(write_together(runtime, scheduler, texts, "s:4"), write_alone(BltRuntime(alone), texts, "s:4"), 1e-5)


def test_slots_that_somebody_asks_for_are_refused_where_engines_take_one_sequence(
    tiny_bundle: Path, tmp_path: Path, gpu: FakeCuda
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "one")
    library = TensorRtLibrary("tensorrt-rtx", sys.modules["tensorrt_rtx"])
    compile_bundle(tmp_path / "one", library, CompileRequest((89,), (600,), sequences=1))
    backend = load_form(FORMS["BLT-D engines"], tmp_path / "one", gpu, 4)
    with pytest.raises(BundleError, match=r"at most 1 sequences, expected 3: .* compile --sequences 3$"):
        round_schedulers(backend, 1, 4, slots=3)
    (scheduler,) = round_schedulers(backend, 1, 4)
    assert not scheduler.shares_calls


def test_recorded_activations_are_counted_before_loading(
    compiled: Callable[..., Path], tiny_checkpoint: Path, gpu: FakeCuda
) -> None:
    form, bundle = FORMS["BLT-D engines"], compiled(tiny_checkpoint)
    backend = load_form(form, bundle, gpu, 1)
    needed = Bundle.open(bundle).graph_bytes + backend.sequence_bytes + MEMORY_BYTES
    free = gpu.cudaMemGetInfo()[1]
    gpu.used_by_others = free - needed + 1
    with pytest.raises(CapacityError, match="of them shared by all sequences"):
        load_form(form, bundle, gpu, 1)
