from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.runtime.backends import providers
from fastblt.runtime.backends.cuda_provider import WITHOUT_CUDA
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.providers import choose_provider, provider_options
from fastblt.runtime.blt_runtime import BltRuntime


def test_engines_of_onnxruntime_are_cached_for_each_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "cache_folder", lambda: tmp_path / "cache")
    folders = set()
    for bundle in ("a", "b"):
        found = provider_options("tensorrt", tmp_path / bundle)
        assert [name for name, _ in found] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        options = found[0][1]
        assert options["trt_engine_cache_enable"] == "1"
        assert Path(options["trt_engine_cache_path"]).is_dir()
        folders.add(options["trt_engine_cache_path"])
    assert len(folders) == 2
    wanted = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    assert provider_options("cuda", tmp_path) == [("CUDAExecutionProvider", wanted)]


@pytest.mark.parametrize(("cuda", "library", "works"), [(True, True, True), (True, False, False), (False, True, False)])
def test_tensorrt_provider_is_offered_only_where_it_can_load(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, library: bool, works: bool
) -> None:
    monkeypatch.setattr(providers, "cuda_problem", lambda: None if cuda else WITHOUT_CUDA)
    monkeypatch.setattr(providers, "loads", lambda *names: library)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
    if works:
        assert choose_provider("tensorrt") == "tensorrt"
    else:
        with pytest.raises(ProviderError, match=r"TensorRT provider does not load .*libnvinfer\.so\.10"):
            choose_provider("tensorrt")


def test_only_cuda_is_asked_to_record_when_tensorrt_is_first(
    tiny_bundle: Path, gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "cache_folder", lambda: tmp_path / "cache")
    asked: list[list[tuple[str, dict[str, str]]]] = []

    class Spy(FakeOnnxRuntime):
        def InferenceSession(self, path: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> object:  # noqa: N802
            asked.append(providers)
            # The stand-in runs the first provider's work; its settings are those of CUDA.
            return super().InferenceSession(path, options, [(providers[0][0], providers[1][1])])

    backend = loading.load_onnxruntime(tiny_bundle, "tensorrt", 200, ort=Spy(gpu))
    assert len(BltRuntime(backend).generate(b"hello", 10, method="ar").data) == 10
    for tensorrt, cuda in asked:
        assert "enable_cuda_graph" not in tensorrt[1]
        assert cuda[1]["enable_cuda_graph"] == "1"
        assert tensorrt[1]["user_compute_stream"] == cuda[1]["user_compute_stream"] == str(backend.stream.handle)
