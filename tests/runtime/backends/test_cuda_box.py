"""What the real CUDA provider of ONNX Runtime does on a box that lacks something, over the stub of the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fakes.cuda_stub import build

PROBE = "from fastblt.runtime.backends.cuda_provider import cuda_problem; print(cuda_problem())"
LOAD = """
import sys
from pathlib import Path
from fakes.cuda_stub.runtime_api import install
install()
from fastblt.runtime.backends.gpu.loading import load_onnxruntime
from fastblt.runtime.backends.protocol import CapacityError
try:
    load_onnxruntime(Path(sys.argv[1]), "cuda", 64)
except CapacityError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("cudnn", "driver", "expected"),
    [
        (True, 13000, "None"),
        (False, 13000, "found no usable cuDNN ("),
        (True, 12040, "found a driver for CUDA 12.4, expected one for CUDA 13 or newer, which onnxruntime-gpu "),
    ],
    ids=["complete", "no cudnn", "old driver"],
)
def test_what_a_box_lacks_is_found(cuda_stub: Path, cudnn: bool, driver: int, expected: str) -> None:
    environment = build.environment(cuda_stub, cudnn=cudnn, driver=driver)
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(expected)
    assert done.stdout.count("\n") == 1


def test_box_without_a_gpu_is_one_line(cuda_stub: Path) -> None:
    environment = build.environment(cuda_stub, devices=0)
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    expected = "ONNX Runtime's CUDA provider fails (CUDA error 100: no CUDA-capable device is detected)\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_too_little_memory_is_found_before_anything_is_loaded(cuda_stub: Path, tiny_bundle: Path) -> None:
    environment = build.environment(cuda_stub, memory=2**16)
    done = subprocess.run([sys.executable, "-c", LOAD, tiny_bundle], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("memory: found 0.00 GB on the GPU, expected ")
    assert done.stdout.endswith(": fastblt quantize makes smaller models\n")
