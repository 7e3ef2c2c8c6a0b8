"""Checks which shape classes occur: one for each power of two of rows, whatever is pooled or read."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda, cudaMemcpyKind
from fakes.onnxruntime_cuda import FakeOnnxRuntime
from fakes.tensorrt import FakeTensorRt

from fastblt.export import engine_compiler
from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.models.tokens import encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.engines import ShapeProfile
from fastblt.runtime.bundle.tensorrt_library import TensorRtLibrary
from fastblt.runtime.sequence.session import Session

TEXT = b"In the beginning God created the heaven and the earth. " * 8
#: Powers of two up to `CALL_ROWS`.
ROWS = [1 << shift for shift in range(CALL_ROWS.bit_length())]


@pytest.fixture(scope="module")
def bundle(compiled: Callable[..., Path], shipped_checkpoint: Path) -> Path:
    return compiled(shipped_checkpoint)


@pytest.fixture(scope="module")
def old_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose engines take as many latents as rows, as they were compiled by earlier versions."""

    def old_profiles(*arguments: Any) -> tuple[ShapeProfile, ...]:
        return tuple(map(old_profile, profiles(*arguments)))

    folder, profiles = tmp_path_factory.mktemp("old") / "bundle", engine_compiler._profiles
    shutil.copytree(bundle, folder)
    library = TensorRtLibrary("tensorrt-rtx", FakeTensorRt(FakeCuda()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_compiler, "_profiles", old_profiles)
        compile_bundle(folder, library, CompileRequest((89,), (1000,)))
    return folder


def old_profile(profile: ShapeProfile) -> ShapeProfile:
    shapes = dict(profile.shapes)
    if "latent_kv" in shapes:
        rows = [index[1] for index in shapes["latent_index"]]
        least, usual, most = ((1 if n == 0 else count, *shapes["latent_kv"][n][1:]) for n, count in enumerate(rows))
        shapes["latent_kv"] = (least, usual, most)
    return dataclasses.replace(profile, shapes=shapes)


def scored_in_pieces(backend: DeviceBackend) -> np.ndarray:
    """Score a text in pieces of all sizes and return the logits of the last row."""
    session, done = Session(backend), 0
    for count in (40, *range(1, 20), 30, 33, 64, 1):
        session.append(encode(TEXT[done : done + count], bos=False))
        found = session.score().logits[-1].copy()
        done += count
    return found


@pytest.mark.parametrize("kind", ["onnxruntime", "engines"])
def test_each_graph_has_one_class_for_each_power_of_two_of_rows(bundle: Path, gpu: FakeCuda, kind: str) -> None:
    backend = (
        loading.load_tensorrt(bundle, "tensorrt-rtx", 1000)
        if kind == "engines"
        else loading.load_onnxruntime(bundle, "cuda", 1000, ort=FakeOnnxRuntime(gpu))
    )
    scored_in_pieces(backend)
    for part in ("encoder", "decoder"):
        rows = [rows for rows, *_ in backend.slots[0].graphs[part]._classes]
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(ROWS)


def test_old_engines_read_a_copy_of_the_latents(bundle: Path, old_bundle: Path, gpu: FakeCuda) -> None:
    old, new = (loading.load_tensorrt(folder, "tensorrt-rtx", 1000) for folder in (old_bundle, bundle))
    assert not old.slots[0].graphs["decoder"].whole
    assert new.slots[0].graphs["decoder"].whole
    np.testing.assert_array_equal(scored_in_pieces(old), scored_in_pieces(new))
    expected = BltRuntime(OnnxRuntimeBackend.load(bundle, 1000, 1))
    for method in ("ar", "s:8", "dv:8@one"):
        wanted = expected.generate(TEXT[:80], 60, method=method).data
        assert BltRuntime(old).generate(TEXT[:80], 60, method=method).data == wanted
    assert len(old.slots[0].graphs["decoder"]._classes) <= len(ROWS)


def test_decoder_reads_latents_where_they_are_kept(bundle: Path, gpu: FakeCuda, monkeypatch: Any) -> None:
    backend = loading.load_tensorrt(bundle, "tensorrt-rtx", 1000)
    session = Session(backend)
    session.append(encode(TEXT[:100], bos=False))
    session.score()
    copied = []
    copy = gpu.cudaMemcpyAsync

    def counted(dst: int, src: int, count: int, kind: int, stream: int) -> Any:
        copied.append(cudaMemcpyKind(kind))
        return copy(dst, src, count, kind, stream)

    monkeypatch.setattr(gpu, "cudaMemcpyAsync", counted)
    session.sequence.run_decoder(101, np.array([100, 101, 102]), np.array([7, 7, 8]))
    kinds = [cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToHost]
    assert copied == kinds, "the inputs, then the results"
