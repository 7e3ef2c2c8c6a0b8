"""The choice of a provider, and what is said when it does not exist or does not work."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from fastblt.runtime.backends import providers
from fastblt.runtime.backends.cuda_provider import cuda_problem
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.providers import choose_provider
from fastblt.runtime.blt_runtime import BltRuntime


def test_provider_is_named_with_the_choices_when_unknown() -> None:
    with pytest.raises(ProviderError, match=r"^provider: found 'tpu', expected auto, cpu, cuda, tensorrt$"):
        choose_provider("tpu")


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
@pytest.mark.parametrize("name", ["tpu", "CPU", "", "CUDAExecutionProvider"])
def test_unknown_provider_is_refused(tiny_bundle: Path, backend: str, name: str) -> None:
    with pytest.raises(ProviderError, match=f"^provider: found '{name}'"):
        BltRuntime.from_pretrained(tiny_bundle, provider=name, backend=backend, max_bytes=50)


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here")
@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_cuda_is_refused_when_it_does_not_work(
    tiny_bundle: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProviderError, match=r"^provider: found 'cuda', but "):
        BltRuntime.from_pretrained(tiny_bundle, provider="cuda", backend=backend, max_bytes=50)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here")
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_cpu_is_chosen_quietly_when_cuda_is_listed_but_does_not_work(
    tiny_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*providers.PROVIDERS.values()])
    cuda_problem.cache_clear()
    runtime = BltRuntime.from_pretrained(tiny_bundle, provider=name, max_bytes=50)
    assert runtime.backend.device == "cpu"
    runtime.generate(b"x", 3, method="ar")
    assert capfd.readouterr() == ("", "")


def test_cuda_is_chosen_when_it_is_asked_for_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` stays on the CPU until an audit has passed on a GPU."""
    monkeypatch.setattr(providers, "cuda_problem", lambda: None)
    assert [choose_provider(name) for name in ("auto", "cuda", "cpu")] == ["cpu", "cuda", "cpu"]


def test_cuda_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def available() -> list[str]:
        calls.append(1)
        return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", available)
    cuda_problem.cache_clear()
    try:
        assert cuda_problem() is cuda_problem() is not None
        assert len(calls) == 1
    finally:
        cuda_problem.cache_clear()
