"""What a measurement depends on: the machine, its memory bandwidth, the versions of packages."""

from __future__ import annotations

import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def device_info(threads: int | None = None) -> dict[str, Any]:
    """The machine and the versions that a measurement depends on; plain JSON types.

    Args:
        threads: what the runtimes were asked for; None: their own choice.
    """
    gpu_packages = ("cuda-bindings", "tensorrt", "tensorrt-rtx-cu13")
    packages = ("fastblt", "numpy", "onnxruntime-gpu", "onnxruntime", "torch", *gpu_packages)
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": threads,
        "memory_gb_per_s": memory_bandwidth(),
        "gpus": _gpus(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := package_version(name)) is not None},
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bandwidth(megabytes: int = 256, threads: int = 1) -> float:
    """GB/s at which threads together read main memory: the best of twenty sums over an array larger than the caches."""
    array = np.ones(megabytes * 2**18, dtype=np.float32)
    pieces = np.array_split(array, threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(20):
            began = time.perf_counter()
            list(pool.map(np.sum, pieces))
            seconds.append(time.perf_counter() - began)
    return array.nbytes / min(seconds) / 1e9


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return (names[0] if names else "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def package_version(package: str) -> str | None:
    """Version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
