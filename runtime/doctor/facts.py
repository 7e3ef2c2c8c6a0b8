"""Collects facts about this machine; nothing here raises an error or prints anything."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from fastblt.models.machine_memory import physical_memory
from fastblt.runtime.bundle.tensorrt_library import MODULES, flavor_problem, load_library
from fastblt.runtime.doctor.nvml import Board, read_nvml
from fastblt.runtime.driver import driver_cuda
from fastblt.runtime.machine import cpu_model, package_version, usable_cores
from fastblt.runtime.problem import Problem

T = TypeVar("T")

_JETSON_FILE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Gpu:
    """Describes one GPU that CUDA can use."""

    name: str
    sm: int
    """Compute capability, e.g. 89."""
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Library:
    """Describes a TensorRT that can be imported."""

    target: str
    version: str
    updates_caches: bool
    """Whether it takes standard graphs; where not, graphs must be lowered."""


@dataclass(frozen=True)
class MachineFacts:
    """Holds everything that is known about the machine; None: there is no such thing."""

    system: str
    python: str
    cpu: str
    cores: int
    memory_bytes: int | None
    driver_cuda: str | None = None
    """Newest CUDA version that the driver supports, e.g. ``13.0``; None: there is no driver."""
    driver_version: str | None = None
    """Version of the driver itself, e.g. ``580.95.05``; None where NVML cannot be asked."""
    jetson: str | None = None
    """First line of a Jetson's release file."""
    cuda_bindings: str | None = None
    """Version of cuda-python's bindings."""
    boards: tuple[Board, ...] = ()
    """GPUs that the driver reports; none where NVML cannot be asked."""
    gpus: tuple[Gpu, ...] = ()
    """GPUs that CUDA can use; none without cuda-python."""
    gpu_error: str | None = None
    """Why CUDA can use no GPU, where there is a driver."""
    libraries: tuple[Library, ...] = ()
    library_errors: dict[str, str] = field(default_factory=dict)
    """Why a TensorRT cannot be used, by target."""
    flavor_problems: dict[str, Problem] = field(default_factory=dict)
    """What is wrong with the CUDA that a TensorRT was built for, by target."""
    onnxruntime: str | None = None
    onnxruntime_package: str | None = None
    """``onnxruntime-gpu`` or ``onnxruntime``."""
    onnxruntime_cuda: bool = False
    """Whether its CUDA provider loads and runs."""
    onnxruntime_cuda_problem: Problem | None = None
    """Why it does not."""
    onnxruntime_tensorrt: bool = False
    """Whether its TensorRT provider can load."""
    torch: str | None = None
    torch_cuda: bool = False
    """Whether PyTorch sees a GPU."""
    compiler: bool = False
    """Whether what `fastblt compile` needs besides TensorRT is installed."""

    def library(self, target: str) -> Library | None:
        """Return the TensorRT of a target, ``tensorrt`` or ``tensorrt-rtx``; None where it cannot be imported."""
        return next((known for known in self.libraries if known.target == target), None)


def probe() -> MachineFacts:
    """Collect the facts; this takes seconds where PyTorch or ONNX Runtime have to load CUDA."""
    bindings = package_version("cuda-bindings")
    driver = driver_cuda()
    gpus, error = _gpus() if driver and bindings else ((), None)
    driver_version, boards = read_nvml()
    libraries, errors = _libraries()
    unknown: Problem | None = Problem("ONNX Runtime's CUDA provider cannot be tried", "")
    problem = _quietly(_onnxruntime_cuda_problem, unknown)
    package = next((name for name in ("onnxruntime-gpu", "onnxruntime") if package_version(name)), None)
    return MachineFacts(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu=cpu_model(),
        cores=usable_cores(),
        memory_bytes=physical_memory(),
        driver_cuda=driver,
        driver_version=driver_version,
        boards=boards,
        jetson=_first_line(_JETSON_FILE),
        cuda_bindings=bindings,
        gpus=gpus,
        gpu_error=error,
        libraries=libraries,
        library_errors=errors,
        flavor_problems={name: found for name in MODULES if (found := flavor_problem(name, driver))},
        onnxruntime=package_version(package) if package else None,
        onnxruntime_package=package,
        onnxruntime_cuda=problem is None,
        onnxruntime_cuda_problem=problem,
        onnxruntime_tensorrt=_quietly(_onnxruntime_tensorrt, False),
        torch=package_version("torch"),
        torch_cuda=_quietly(_torch_cuda, False),
        compiler=find_spec("onnx_ir") is not None and find_spec("onnx") is not None,
    )


def _quietly(ask: Callable[[], T], otherwise: T) -> T:
    """Return the answer to a question, or ``otherwise`` where asking fails: a library that fails is of no use here."""
    try:
        return ask()
    except Exception:
        return otherwise


def _first_line(path: Path) -> str | None:
    """Return the first line of a file; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """Return the GPUs that CUDA can use, or why there are none."""
    try:
        from fastblt.runtime.backends.gpu.cuda import Cuda, load_api

        api: Any = load_api()
        count = int(Cuda(api)("cudaGetDeviceCount"))
        return tuple(_gpu(Cuda(api, index), index) for index in range(count)), None
    except Exception as error:
        return (), str(error)


def _gpu(cuda: Any, index: int) -> Gpu:
    """Ask CUDA for one GPU."""
    free, total = cuda("cudaMemGetInfo")
    name = cuda("cudaGetDeviceProperties", index).name
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(text.rstrip("\0"), cuda.sm, int(total), int(free))


def _libraries() -> tuple[tuple[Library, ...], dict[str, str]]:
    """Return every TensorRT that can be imported, and why the others cannot, by target."""
    found, errors = [], {}
    for target in MODULES:
        try:
            library = load_library(target)
            found.append(Library(target, library.version, library.updates_caches))
        except Exception as error:
            errors[target] = str(error)
    return tuple(found), errors


def _onnxruntime_cuda_problem() -> Problem | None:
    found: Problem | None = importlib.import_module("fastblt.runtime.backends.cuda_provider").cuda_problem()
    return found


def _onnxruntime_tensorrt() -> bool:
    return bool(importlib.import_module("fastblt.runtime.backends.providers").tensorrt_works())


def _torch_cuda() -> bool:
    """Return whether PyTorch sees a GPU; it is imported, which takes seconds, only where it can see one."""
    if package_version("torch") is None or driver_cuda() is None:
        return False
    return bool(importlib.import_module("torch").cuda.is_available())
