"""What keeps ONNX Runtime's CUDA provider from working is found by the probe, and named with what mends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from fastblt.runtime.backends import cuda_provider
from fastblt.runtime.backends.cuda_provider import PROVIDER, cuda_problem
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.providers import choose_provider

#: Operators for which the provider of ONNX Runtime 1.31 loads cuDNN: each was run without it.
OF_CUDNN = {"ReduceMax", "ReduceMin", "ReduceProd"}
NO_CUDNN = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Non-zero status code returned while running ReduceMax node. Name:'' "
    "Status Message: cuDNN is unavailable for CUDA Execution Provider: dlopen failed for libcudnn.so: libcudnn.so: "
    "cannot open shared object file: No such file or directory"
)


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


class Box:
    """Stands in for ``onnxruntime``, built for CUDA 13, on a box that may lack things."""

    __version__ = "1.31.1"

    def __init__(self) -> None:
        self.providers = [PROVIDER, "CPUExecutionProvider"]
        self.driver: str | None = "13.0"
        self.libraries = True
        self.cudnn = True
        self.SessionOptions = SimpleNamespace

    def get_available_providers(self) -> list[str]:
        return self.providers

    def preload_dlls(self) -> None:
        print("Failed to load libcudart.so.13")

    def loads(self, *names: str) -> bool:
        return self.libraries

    def InferenceSession(  # noqa: N802
        self, model: bytes, options: Any, providers: list[str], enable_fallback: int
    ) -> Any:
        needs_cudnn = bool(operators(onnx.load_from_string(model)) & OF_CUDNN)

        def run(names: object, inputs: object) -> None:
            if needs_cudnn and not self.cudnn:
                raise RuntimeError(NO_CUDNN)

        return SimpleNamespace(run=run, get_providers=lambda: self.providers)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    found = Box()
    monkeypatch.setitem(sys.modules, "onnxruntime", found)
    monkeypatch.setitem(sys.modules, "onnxruntime.capi.build_and_package_info", SimpleNamespace(cuda_version="13.0"))
    monkeypatch.setattr(cuda_provider, "driver_cuda", lambda: found.driver)
    monkeypatch.setattr(cuda_provider, "loads", found.loads)
    cuda_problem.cache_clear()
    yield found
    cuda_problem.cache_clear()


LIBRARIES = r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cudnn": False}, rf"found no usable cuDNN \(dlopen failed for .*\), expected cuDNN 9: {LIBRARIES}"),
        ({"libraries": False}, rf"found no libcudart\.so\.13, expected the libraries of CUDA 13: {LIBRARIES}"),
        (
            {"driver": "12.4"},
            "found a driver for CUDA 12.4, expected one for CUDA 13 or newer, which onnxruntime-gpu 1.31.1 needs: "
            "update the driver",
        ),
        ({"driver": None}, r"no NVIDIA driver is installed: install NVIDIA's driver .*"),
        ({"providers": ["CPUExecutionProvider"]}, "ONNX Runtime is installed without CUDA: pip uninstall .*"),
    ],
    ids=["cudnn", "libraries", "old driver", "no driver", "cpu build"],
)
def test_what_a_box_lacks_is_one_line_with_what_mends_it(
    box: Box, capfd: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    for name, value in change.items():
        setattr(box, name, value)
    with pytest.raises(ProviderError, match=f"^provider: found 'cuda', but {message}$") as raised:
        choose_provider("cuda")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_wrong_with_a_complete_box(box: Box) -> None:
    assert cuda_problem() is None
    box.driver = "13.2"
    cuda_problem.cache_clear()
    assert choose_provider("cuda") == "cuda"


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_encoder_bundle"])
def test_probe_needs_what_the_graphs_need(request: pytest.FixtureRequest, bundle: str) -> None:
    folder: Path = request.getfixturevalue(bundle)
    graphs = set().union(*(operators(onnx.load(path, load_external_data=False)) for path in folder.glob("*.onnx")))
    probe = operators(onnx.load_from_string(cuda_provider._REDUCE_MAX))
    assert graphs & OF_CUDNN <= probe & OF_CUDNN
