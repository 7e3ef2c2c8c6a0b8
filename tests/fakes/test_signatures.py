"""The stand-ins contain nothing that the real modules lack, and take the same arguments."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from typing import Any

import pytest
from fakes import tensorrt as fake
from fakes.cuda import FakeCuda
from fakes.tensorrt import FakeTensorRt
from fakes.tensorrt_values import Severity

cudart = pytest.importorskip("cuda.bindings.runtime")
trt = pytest.importorskip("tensorrt_rtx")

FUNCTIONS = [name for name in vars(FakeCuda) if name.startswith("cuda") and callable(getattr(FakeCuda, name))]
FUNCTIONS = [name for name in FUNCTIONS if not inspect.isclass(getattr(FakeCuda, name))]
CLASSES = [name for name, value in vars(FakeTensorRt(FakeCuda())).items() if inspect.isclass(value)]


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_of_the_cuda_runtime_takes_the_same_arguments(name: str) -> None:
    first_line = (getattr(cudart, name).__doc__ or "").splitlines()[0]
    found = re.fullmatch(rf"{name}\((.*)\)", first_line)
    assert found, first_line
    # "unsigned int flags" is the argument flags; types do not matter.
    real = [re.split(r"[:=]", item)[0].split()[-1].strip("*") for item in found[1].split(",") if item.strip()]
    assert parameters(getattr(FakeCuda, name)) == real


@pytest.mark.parametrize(
    "name", ["cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus", "cudaDeviceAttr"]
)
def test_number_of_the_cuda_runtime_is_the_same(name: str) -> None:
    for member in getattr(FakeCuda, name):
        assert int(getattr(getattr(cudart, name), member.name)) == member


def test_flags_of_the_cuda_runtime_are_the_same() -> None:
    for name in ("cudaHostAllocDefault", "cudaStreamNonBlocking"):
        assert getattr(cudart, name) == getattr(FakeCuda, name)


@pytest.mark.parametrize("name", CLASSES)
def test_class_of_tensorrt_has_the_same_members(name: str) -> None:
    kind, real = getattr(FakeTensorRt(FakeCuda()), name), getattr(trt, name)
    own = {  # of the stand-in's own
        "INetworkDefinition": {"model", "layers"},
        "ICudaEngine": {"is_input"},
        "LayerType": {"OTHER"},
        "IAttentionInputLayer": {"Attention"},
    }
    members = {m for m in vars(kind) if not m.startswith("_")} - own.get(name, set())
    assert all(hasattr(real, member) for member in members), members
    if not issubclass(kind, enum.Enum):
        for member in members:
            function = inspect.getattr_static(kind, member)
            if not inspect.isfunction(function):
                continue
            overloads = re.findall(rf"{member}\(self: [\w.]+(.*?)\) -> ", getattr(real, member).__doc__ or "")
            if overloads:
                wanted = [re.findall(r", (\w+): ", overload)[: len(parameters(function))] for overload in overloads]
                assert parameters(function) in wanted, member


def test_attention_layer_has_what_is_set() -> None:
    assert hasattr(trt.IAttention, "decomposable")
    assert fake.IAttentionInputLayer.Attention.decomposable is False


def test_value_types_of_tensorrt_exist() -> None:
    for name in ("float32", "float16", "bfloat16", "int64"):
        assert hasattr(trt, name)
    assert importlib.import_module("tensorrt_rtx").__version__ == FakeTensorRt(FakeCuda()).__version__


def test_logger_has_the_severities() -> None:
    for member in Severity:
        assert hasattr(trt.ILogger.Severity, member.name)
