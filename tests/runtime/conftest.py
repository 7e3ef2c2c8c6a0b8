"""Provides backends: the real ones over the tiny models, and one that follows a script and checks every call."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime
from fakes.scripted_backend import ScriptedBackend
from fakes.tensorrt import FakeTensorRt
from fakes.watched_batch import WatchedBackend
from numpy.typing import NDArray
from shared_files import SharedFiles

from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.eager.sequence import EagerSequence
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.tensorrt_library import TensorRtLibrary, load_library
from fastblt.runtime.methods import MethodEntry, MethodError, registry
from fastblt.runtime.plugins import Plugins
from fastblt.runtime.sequence.session import Session

#: Longest prompt plus new bytes of the shared backends.
MAX_BYTES = 600

OpenBackend = Callable[[str, str, int], Backend]


@pytest.fixture
def own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with the built-in methods; what a test registers is forgotten after it."""
    fresh = Plugins("method", registry.ENTRY_POINT_GROUP, MethodEntry, MethodError, registry.BUILT_IN)
    monkeypatch.setattr(registry, "_plugins", fresh)


@pytest.fixture(scope="session")
def open_backend(request: pytest.FixtureRequest, shared_files: SharedFiles) -> OpenBackend:
    """``open_backend(kind, decoder_input, max_bytes)``: a new backend over one of the tiny models."""
    models = {
        "embedding": ("tiny_model", "tiny_bundle"),
        "encoder": ("tiny_encoder_model", "tiny_encoder_bundle"),
        "mixed": ("tiny_mixed_model", "tiny_mixed_bundle"),
    }

    def make(kind: str, decoder_input: str, max_bytes: int) -> Backend:
        model, bundle = models[decoder_input]
        if kind == "eager":
            eager: Blt = request.getfixturevalue(model)
            return EagerBackend(eager, max_bytes)
        folder: Path = request.getfixturevalue(bundle)
        if kind == "onnxruntime":
            return OnnxRuntimeBackend.load(folder, max_bytes, 1)
        return open_device_backend(kind, folder, max_bytes, shared_files)

    return make


def open_device_backend(kind: str, bundle: Path, max_bytes: int, files: SharedFiles) -> DeviceBackend:
    """Load a backend on a stand-in GPU that enforces the real rules: ``tensorrt-rtx`` or ``onnxruntime-cuda``."""
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        patch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(cuda))
        if kind == "onnxruntime-cuda":
            return loading.load_onnxruntime(bundle, "cuda", max_bytes, ort=FakeOnnxRuntime(cuda), sequences=3)

        def write(folder: Path) -> None:
            shutil.copytree(bundle, folder)
            compile_bundle(folder, load_library(kind), CompileRequest((cuda.sm,), (max_bytes,), sequences=16))

        compiled = files.make(f"{kind}-{max_bytes}-{bundle.name}", write)
        return loading.load_tensorrt(compiled, kind, max_bytes, sequences=3)


KINDS = [
    (kind, rows)
    for kind in ("eager", "onnxruntime", "tensorrt-rtx", "onnxruntime-cuda")
    for rows in ("embedding", "encoder")
]


@pytest.fixture(scope="session", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def backend(request: pytest.FixtureRequest, open_backend: OpenBackend) -> Backend:
    """Each backend with each kind of decoder input; what one session left in the buffers the next one finds."""
    return open_backend(*request.param, MAX_BYTES)


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> BltRuntime:
    """A runtime with places for 24 texts, each of which is read from its beginning."""
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=700, threads=1, sequences=24, reuse_prompts=False)


@pytest.fixture
def watched(alone: BltRuntime) -> WatchedBackend:
    """The backend of `alone`, with batches that note what they are asked."""
    return WatchedBackend(alone.backend)


@pytest.fixture(scope="module", params=["eager", "onnxruntime"])
def blt_d(request: pytest.FixtureRequest, open_backend: OpenBackend) -> Backend:
    """Each backend over the tiny BLT-D model."""
    return open_backend(request.param, "embedding", 600)


@pytest.fixture(scope="session")
def model_of(tiny_model: Blt, tiny_encoder_model: Blt) -> Callable[[Backend], Blt]:
    """``model_of(backend)``: the model that a backend runs."""
    models = {"embedding": tiny_model, "encoder": tiny_encoder_model}
    return lambda backend: models[backend.config.decoder_input]


@pytest.fixture(scope="session")
def latents_of() -> Callable[[Session, int], NDArray[np.float32]]:
    """``latents_of(session, count)``: a copy of the first latents' decoder keys and values, [count, elements]."""

    def read(session: Session, count: int) -> NDArray[np.float32]:
        sequence: Any = session.sequence
        if isinstance(sequence, EagerSequence):
            return sequence._latent_kv[0, :count].flatten(1).numpy().copy()
        found: NDArray[np.float32] = sequence.tensor("latent_kv", 0, count).reshape(count, -1)
        return found

    return read


Scripted = Callable[..., ScriptedBackend]


@pytest.fixture(scope="session", params=["embedding", "encoder"])
def scripted(request: pytest.FixtureRequest, tiny_config: BltConfig, tiny_encoder_config: BltConfig) -> Scripted:
    """``scripted(text, surprising=(), misdrafted=(), max_bytes=600)``; ``text`` is bytes, or tokens after BOS."""
    config = {"embedding": tiny_config, "encoder": tiny_encoder_config}[request.param]

    def make(text: bytes | list[int], *, max_bytes: int = MAX_BYTES, **positions: Collection[int]) -> ScriptedBackend:
        ids = encode(text) if isinstance(text, bytes) else np.array([BOS_ID, *text], dtype=np.int64)
        return ScriptedBackend(ids, config, max_bytes, **positions)

    return make


CAPACITIES = (256, 1000)


@pytest.fixture
def make_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCuda]:
    """``make_gpu(sm=89, ...)``: from now on a machine with one GPU, cuda-python and TensorRT-RTX."""

    def make(**options: Any) -> FakeCuda:
        cuda = FakeCuda(**options)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(cuda))
        return cuda

    return make


@pytest.fixture
def gpu(make_gpu: Callable[..., FakeCuda]) -> FakeCuda:
    """A machine with one GPU, cuda-python and TensorRT-RTX."""
    return make_gpu()


@pytest.fixture(scope="session")
def compiled(exported: Callable[..., Path], shared_files: SharedFiles) -> Callable[..., Path]:
    """``compiled(checkpoint, **options of export)``: a bundle with engines that the stand-in runs."""

    def make(checkpoint: Path, **options: Any) -> Path:
        bundle = exported(checkpoint, **options)

        def write(folder: Path) -> None:
            shutil.copytree(bundle, folder)
            library = TensorRtLibrary("tensorrt-rtx", FakeTensorRt(FakeCuda()))
            compile_bundle(folder, library, CompileRequest((89,), CAPACITIES, sequences=16))

        return shared_files.make(f"compiled-{bundle.name}", write)

    return make
