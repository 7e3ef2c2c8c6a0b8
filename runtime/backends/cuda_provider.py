"""Finds out whether ONNX Runtime's CUDA provider works here, and if not, what is missing and what mends it.

`onnxruntime.get_available_providers()` lists what the package was built with, not what can load, and a session
that asks for CUDA without it falls back to the CPU with a printed error. cuDNN is loaded by the first operator that
needs it, so a session may open without. So: probe with an operator that needs all of it, and compare.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import re
from typing import Any

import numpy as np

from fastblt.runtime.driver import driver_cuda, loads, major
from fastblt.runtime.problem import Problem

logger = logging.getLogger(__name__)
PROVIDER = "CUDAExecutionProvider"
#: What installs the libraries of CUDA and cuDNN, for the CUDA that the package was built with.
_LIBRARIES_COMMAND = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
WITHOUT_CUDA = Problem(
    "ONNX Runtime is installed without CUDA",
    "pip uninstall onnxruntime; pip install onnxruntime-gpu (on a Jetson: NVIDIA's wheel for its JetPack)",
)

# y = max(x) for float x [2]: the smallest model that needs the kernels of CUDA, and cuDNN, which is what the encoder
# computes with. Made with onnx.helper: ReduceMax, opset 13, IR 8, input FLOAT[2], output FLOAT[1].
_REDUCE_MAX = bytes.fromhex(
    "08083a380a110a017812017922095265647563654d61781201675a0f0a0178120a0a08080112040a"
    "020802620f0a0179120a0a08080112040a02080142040a00100d"
)


@functools.cache
def cuda_problem() -> Problem | None:
    """Return why the CUDA provider does not work here; None: it works.

    It is tried once, and prints nothing.
    """
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError:
        return Problem("ONNX Runtime is not installed", "pip install onnxruntime-gpu")
    problem = _missing(ort) or _failure(ort)
    if problem is not None:
        logger.info("CUDA provider does not work here: %s", problem)
    return problem


def _missing(ort: Any) -> Problem | None:
    """Return what the provider needs and this machine lacks, found without loading the provider, which would print."""
    if PROVIDER not in ort.get_available_providers():
        return WITHOUT_CUDA
    driver, built = driver_cuda(), _built_for()
    if driver is None:
        return Problem("no NVIDIA driver is installed", "install NVIDIA's driver (a Jetson's comes with JetPack)")
    if built is None:
        return None
    if major(driver) < built:
        expected = f"expected one for CUDA {built} or newer, which onnxruntime-gpu {ort.__version__} needs"
        return Problem(f"found a driver for CUDA {driver}, {expected}", "update the driver")
    with contextlib.redirect_stdout(io.StringIO()):  # what is missing is found below
        ort.preload_dlls()
    for linux, windows in _libraries(built):
        if not loads(linux, windows):
            return Problem(f"found no {linux}, expected the libraries of CUDA {built}", _LIBRARIES_COMMAND)
    return None


def _libraries(built: int) -> list[tuple[str, str]]:
    """Return the libraries of CUDA that the provider is linked against, by their names on Linux and on Windows."""
    names = [(f"lib{name}.so.{built}", f"{name}64_{built}.dll") for name in ("cudart", "cublasLt", "cublas")]
    return [*names, ("libcurand.so.10", "curand64_10.dll")]


def _built_for() -> int | None:
    """Return the major version of CUDA that the installed package was built for; None: it does not know."""
    try:
        package: Any = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        return None
    version = str(getattr(package, "cuda_version", ""))
    return int(version.split(".")[0]) if version[:1].isdigit() else None


def _failure(ort: Any) -> Problem | None:
    """Return why the provider does not run the smallest model; None: it does."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; they are not printed too
    try:
        # Without a device the module would print, fall back to the CPU, and not report why.
        session = ort.InferenceSession(_REDUCE_MAX, options, providers=[PROVIDER], enable_fallback=0)
        session.run(None, {"x": np.zeros(2, dtype=np.float32)})
    except Exception as error:  # the module's exceptions have no common base but this
        text = " ".join(str(error).split())
        if "cudnn" in text.lower():
            return Problem(f"found no usable cuDNN ({_last_words(text)}), expected cuDNN 9", _LIBRARIES_COMMAND)
        failure = re.search(r"CUDA failure (\d+: [^;]+?) *;", text)
        if failure is not None:
            return Problem(f"ONNX Runtime's CUDA provider fails (CUDA error {failure[1]})", "")
        return Problem(f"ONNX Runtime's CUDA provider fails ({_last_words(text)})", "")
    if session.get_providers()[0] != PROVIDER:
        return Problem("ONNX Runtime's CUDA provider does not load", _LIBRARIES_COMMAND)
    return None


def _last_words(text: str) -> str:
    """Return what an error of ONNX Runtime is about, without the codes and the node before it."""
    return text.rpartition("Status Message: ")[2].rpartition("for CUDA Execution Provider: ")[2].rstrip(". ")
