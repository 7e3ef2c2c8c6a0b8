"""Asks NVIDIA's driver which CUDA it supports, and compares packages with that; no package is needed to ask."""

from __future__ import annotations

import ctypes

from fastblt.runtime.problem import Problem

#: The driver's library, on Linux and on Windows.
_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
#: cuda-bindings that call the driver themselves. Later ones hold NVIDIA's runtime for servers, which refuses the older
#: driver of a Jetson with CUDA 12.
_JETSON_BINDINGS = "12.8"


def driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver supports, e.g. ``13.0``; None: there is no driver."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int(0)
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return None


def major(version: str) -> int:
    """Return the first number of a version."""
    return _numbers(version)[0]


def _numbers(version: str) -> tuple[int, int]:
    first, second, *_ = [*version.split("."), "0"]
    return int(first), int(second)


def bindings_for(driver: str) -> str:
    """Return the command that installs the cuda-bindings for a driver of this CUDA version."""
    wanted = _JETSON_BINDINGS if (12, 0) <= _numbers(driver) < (12, 8) else str(major(driver))
    return f"pip install 'cuda-bindings=={wanted}.*'"


def bindings_problem(driver: str | None, bindings: str | None, failure: str | None = None) -> Problem | None:
    """Return why cuda-python cannot use a driver; None: no reason is known.

    Args:
        driver: newest CUDA version that it supports; None: there is none.
        bindings: version of cuda-bindings; None: they are not installed.
        failure: what CUDA reports where it can use no GPU.
    """
    if driver is None:
        return Problem("no NVIDIA driver is installed", "install NVIDIA's driver (a Jetson's comes with JetPack)")
    if bindings is None:
        return Problem("cuda-python is not installed", bindings_for(driver))
    remedy = f"update the driver, or {bindings_for(driver)}"
    if major(bindings) > major(driver):
        expected = f"expected one for CUDA {major(bindings)}, which cuda-bindings {bindings} needs"
        return Problem(f"found a driver for CUDA {driver}, {expected}", remedy)
    if failure is not None:
        # Within one major version a newer runtime works with an older driver on most machines, not on a Jetson.
        newer = _numbers(bindings) > _numbers(driver)
        found = f" with cuda-bindings {bindings} and a driver for CUDA {driver}" if newer else ""
        return Problem(f"no GPU can be used ({failure}){found}", remedy if newer else "")
    return None


def loads(*names: str) -> bool:
    """Return whether one of these libraries can be loaded."""
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
