from __future__ import annotations

import sys

import pytest
from fakes.cuda import FakeCuda
from fakes.tensorrt import FakeTensorRt

CAPACITIES = (256, 1024)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with one GPU, cuda-python and TensorRT-RTX."""
    cuda = FakeCuda()
    install(cuda, monkeypatch)
    return cuda


def install(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(cuda))
