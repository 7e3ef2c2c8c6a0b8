"""A draft decoder on a GPU: a graph of its own over the decoder's caches, one wait for each call of a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda, Status
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.tokens import MASK_ID, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.warm_up import Step
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import Progress
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.requests import denoise, draft_with_block
from fastblt.runtime.sequence.session import Session

TEXT = np.random.default_rng(11).bytes(900)
METHODS = ("ar", "s:4", "dv:4@one", "dv:4@0.3", "dv:4@one+partial", "d:4@0.7", "auto")
FEW_METHODS = ("dv:4@one",)
FORMS: dict[str, dict[str, Any]] = {"standard": {}, "lowered": {"lowered": True}}

LoadMixed = Callable[..., DeviceBackend]


@pytest.fixture
def load_mixed(compiled: Callable[..., Path], tiny_mixed_checkpoint: Path, gpu: FakeCuda) -> LoadMixed:
    """``load_mixed(form="standard", engines=True, max_bytes=1000, row_floor=1)``: a backend on a stand-in GPU."""

    def load(
        form: str = "standard", *, engines: bool = True, max_bytes: int = 1000, row_floor: int = 1
    ) -> DeviceBackend:
        bundle = compiled(tiny_mixed_checkpoint, **FORMS[form])
        if engines:
            return loading.load_tensorrt(bundle, "tensorrt-rtx", max_bytes, row_floor)
        return loading.load_onnxruntime(bundle, "cuda", max_bytes, ort=FakeOnnxRuntime(gpu))

    return load


@pytest.fixture(scope="session")
def texts(tiny_mixed_bundle: Path) -> dict[str, bytes]:
    """What each method writes on the CPU."""
    runtime = BltRuntime(OnnxRuntimeBackend.load(tiny_mixed_bundle, 1000, 1))
    return {method: runtime.generate(TEXT[:90], 24, method=method).data for method in METHODS}


@pytest.mark.parametrize(("form", "engines"), [("standard", True), ("standard", False), ("lowered", True)])
def test_every_method_writes_what_it_writes_on_the_cpu(
    load_mixed: LoadMixed, texts: dict[str, bytes], form: str, engines: bool
) -> None:
    runtime = BltRuntime(load_mixed(form, engines=engines))
    for method in METHODS if form == "standard" and engines else FEW_METHODS:
        found = runtime.generate(TEXT[:90], 24, method=method)
        assert found.data == texts[method], method
        if method != "auto":  # which chooses
            assert (found.stats.nfe["draft"] > 0) == method.startswith("d"), method


def test_caches_slide_under_both_graphs(load_mixed: LoadMixed, tiny_mixed_bundle: Path) -> None:
    backend = load_mixed()
    expected = BltRuntime(OnnxRuntimeBackend.load(tiny_mixed_bundle, 1000, 1))
    for method in ("dv:4@one", "d:4@0.7"):
        wanted = expected.generate(TEXT, 40, method=method).data
        assert BltRuntime(backend).generate(TEXT, 40, method=method).data == wanted
    graphs = backend.slots[0].graphs
    assert graphs["draft"].caches is graphs["decoder"].caches
    assert graphs["draft"].caches.base > 0


def session_after(backend: DeviceBackend, text: bytes) -> Session:
    """Return a session of which all tokens but one are scored."""
    session = Session(backend)
    session.append(encode(text, bos=False))
    session.score()
    session.append([100])
    return session


@pytest.mark.parametrize("engines", [True, False])
def test_block_is_one_launch_and_one_wait_without_an_encoder(
    load_mixed: LoadMixed, gpu: FakeCuda, engines: bool
) -> None:
    backend = load_mixed(engines=engines)
    masked = np.full(backend.config.block_size, MASK_ID, dtype=np.int64)
    with session_after(backend, TEXT[:50]) as session:
        for _ in range(2):  # a class is recorded when it runs for the second time
            session.run(draft_with_block(masked))
            session.run(denoise(masked))
        calls, waits, launches = session.stats.nfe.copy(), gpu.waits, gpu.launches
        allocations = dict(gpu.allocations)
        for _ in range(5):
            session.run(draft_with_block(masked))
            session.run(denoise(masked))
    assert gpu.waits - waits == 10
    assert session.stats.nfe - calls == {"draft": 10}
    assert gpu.launches - launches == (10 if engines else 0)
    assert gpu.allocations.keys() == allocations.keys()


def test_block_that_fails_names_its_graph(
    load_mixed: LoadMixed, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = np.full(4, MASK_ID, dtype=np.int64)
    with session_after(load_mixed(), TEXT[:50]) as session:
        monkeypatch.setattr(gpu, "cudaStreamSynchronize", lambda *arguments: (Status.cudaErrorInvalidValue,))
        with pytest.raises(GraphError, match=r"^draft\.onnx: failed while it ran \(cudaStreamSynchronize"):
            session.run(draft_with_block(masked))


def test_rows_of_text_are_the_same_whatever_a_block_has_left(load_mixed: LoadMixed) -> None:
    """Keys and values of a block are overwritten by those of the text, padding included."""
    backend, found = load_mixed(), []
    masked = np.full(backend.config.block_size, MASK_ID, dtype=np.int64)
    for drafts in (False, True):
        with session_after(backend, TEXT[:50]) as session:
            rows = []
            for token in encode(TEXT[50:70], bos=False):
                if drafts:
                    session.run(draft_with_block(masked))
                rows.append(session.score().logits.copy())
                session.append([token])
            found.append(np.concatenate(rows))
    np.testing.assert_array_equal(found[0], found[1])


def test_state_has_no_caches_of_the_draft_decoder(load_mixed: LoadMixed) -> None:
    backend = load_mixed()
    with session_after(backend, TEXT[:50]) as session:
        names = session.sequence.state(Progress(session.scored, session.open_start, len(session.patch_ends)))
    assert {name.partition(".")[0] for name in names} == {"patcher", "encoder", "decoder", "pool", "latent_kv"} | {
        "global"
    }


@pytest.mark.parametrize(("row_floor", "classes"), [(1, [1, 2, 4, 8]), (16, [16])])
def test_warm_up_binds_the_calls_of_blocks(
    load_mixed: LoadMixed, gpu: FakeCuda, texts: dict[str, bytes], row_floor: int, classes: list[int]
) -> None:
    backend = load_mixed(max_bytes=200, row_floor=row_floor)
    steps: list[Step] = backend.slots[0].warm_up_steps()
    rows = [step.name for step in steps if step.part == "draft"]
    assert rows == [f"draft, {size} rows" for size in classes]  # a block of 4 and a byte
    backend.warm_up()
    recorded = set(gpu.executables)
    assert BltRuntime(backend).generate(TEXT[:90], 24, method="dv:4@one").data == texts["dv:4@one"]
    assert set(gpu.executables) == recorded
