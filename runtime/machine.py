"""Describes the machine: processor, cores, memory bandwidth, GPUs, package versions, and the user's folders.

Importing it is cheap: numpy and platformdirs are imported by the functions that need them.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fastblt import __version__

#: Models with fewer weight bytes than this fit a processor's caches, where one thread beats several.
_SMALL_MODEL_BYTES = 64 * 2**20


def device_info(threads: int | None = None) -> dict[str, Any]:
    """Describe the machine and the package versions that a measurement depends on, in plain JSON types.

    Measures the memory bandwidth, which takes about a second.

    Args:
        threads: number that the runtimes were asked to use; None: their own choice.
    """
    gpu_packages = ("cuda-bindings", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
    packages = ("numpy", "onnxruntime-gpu", "onnxruntime", "torch", *gpu_packages)
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": threads,
        "memory_gb_per_s": memory_bandwidth(),
        "gpus": _gpus(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {"fastblt": __version__} | {name: found for name in packages if (found := package_version(name))},
    }


def machine_identity() -> dict[str, Any]:
    """Return what decides how fast this machine is, in plain JSON types: ``cpu``, ``usable_cores`` and ``gpus``."""
    return {"cpu": cpu_model(), "usable_cores": usable_cores(), "gpus": _gpus()}


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(weight_bytes: int) -> int:
    """Return the threads of one operator for a model of this size: one for small models, else every usable core."""
    return 1 if weight_bytes < _SMALL_MODEL_BYTES else usable_cores()


def memory_bandwidth(megabytes: int = 256, threads: int = 1) -> float:
    """Measure how fast main memory is read, in GB/s: the best of twenty sums over an array larger than the caches.

    Args:
        megabytes: size of the array, MiB.
        threads: number of threads that read at the same time.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

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
    """Return the name of the processor, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return (names[0] if names else "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that Linux's driver lists."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_rss_mb() -> float | None:
    """Return the largest resident memory of this process so far, in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def cache_folder() -> Path:
    """Return the folder for what can be made or fetched again; it need not exist.

    On Linux that is ``$XDG_CACHE_HOME/fastblt``, by default ``~/.cache/fastblt``; elsewhere the system's own place.
    """
    from platformdirs import user_cache_path

    return user_cache_path("fastblt", appauthor=False)


def settings_folder() -> Path:
    """Return the folder for what commands keep as the user's settings; it need not exist.

    On Linux that is ``$XDG_CONFIG_HOME/fastblt``, by default ``~/.config/fastblt``; elsewhere the system's own place.
    """
    from platformdirs import user_config_path

    return user_config_path("fastblt", appauthor=False)
