"""Checks that nothing is bound or recorded while a text grows once a backend is warm, padded or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.entry import ROW_FLOORS, LoadRequest
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu import slot as gpu_slot
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS
from fastblt.runtime.backends.gpu.warm_up import Step
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.session import Session

TEXT = b"In the beginning God created the heaven and the earth. "
METHODS = ("ar", "s:8", "dv:8@one")


def classes(backend: DeviceBackend) -> dict[str, int]:
    return {part: len(graph._classes) for part, graph in backend.slots[0].graphs.items()}


@pytest.mark.parametrize("row_floor", [1, 16])
def test_engines_bind_and_record_nothing_after_warming_up(
    compiled: Callable[..., Path], shipped_checkpoint: Path, gpu: FakeCuda, row_floor: int
) -> None:
    bundle = compiled(shipped_checkpoint)
    backend = loading.load_tensorrt(bundle, "tensorrt-rtx", 256, row_floor)
    reports: list[tuple[int, int, str]] = []
    backend.warm_up(lambda *report: reports.append(report))
    total = reports[0][1]
    assert [done for done, *_ in reports] == list(range(total + 1))
    bound, recorded = classes(backend), set(gpu.executables)
    rows = CALL_ROWS.bit_length() - row_floor.bit_length() + 1
    assert [bound[part] for part in ("patcher", "encoder", "decoder")] == [rows] * 3
    assert bound["global"] % rows == 0  # slots differ, too
    for graph in backend.slots[0].graphs.values():
        for name in graph.cache_names:
            assert not graph.read_cache(name, 0, graph.caches.slots).any()
    expected = BltRuntime(OnnxRuntimeBackend.load(bundle, 256, 1))
    for method in METHODS:
        wanted = expected.generate(TEXT, 40, method=method).data
        assert BltRuntime(backend).generate(TEXT, 40, method=method).data == wanted
    assert classes(backend) == bound
    assert set(gpu.executables) == recorded


@pytest.mark.parametrize("row_floor", [1, 16])
@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_encoder_bundle"])
def test_sessions_bind_nothing_after_warming_up(
    request: pytest.FixtureRequest, name: str, gpu: FakeCuda, row_floor: int
) -> None:
    bundle = request.getfixturevalue(name)
    backend = loading.load_onnxruntime(bundle, "cuda", 300, ort=FakeOnnxRuntime(gpu), row_floor=row_floor)
    backend.warm_up()
    bound = classes(backend)
    wanted = BltRuntime(OnnxRuntimeBackend.load(bundle, 300, 1)).generate(TEXT, 150, method="s:4").data
    assert BltRuntime(backend).generate(TEXT, 150, method="s:4").data == wanted
    assert classes(backend) == bound


def test_backend_may_be_warmed_up_after_a_text_that_made_its_caches_slide(
    compiled: Callable[..., Path], tiny_checkpoint: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = loading.load_tensorrt(compiled(tiny_checkpoint), "tensorrt-rtx", 1000)
    step = Step("decoder", "one byte", backend.slots[0].decoder.warm_up)
    monkeypatch.setattr(gpu_slot, "warm_up_steps", lambda *parts: [step])
    session, patcher = Session(backend), backend.slots[0].graphs["patcher"]
    patcher.caches.base = 600
    with pytest.raises(ValueError, match=r"^warm_up: found 1 open sequences, expected none$"):
        backend.warm_up()
    session.close()
    backend.warm_up()
    assert patcher.caches.base == 0


def test_row_floors_are_those_of_calls(tmp_path: Path) -> None:
    assert max(ROW_FLOORS) == CALL_ROWS
    assert np.array_equal(ROW_FLOORS, 2 ** np.arange(len(ROW_FLOORS)))
    with pytest.raises(ValueError, match="row_floor: found 3, expected one of 1, 2, 4"):
        LoadRequest(tmp_path, row_floor=3)
