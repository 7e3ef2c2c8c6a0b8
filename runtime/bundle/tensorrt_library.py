"""Imports TensorRT or TensorRT-RTX and finds out what it can do, by its attributes and not by its version."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from fastblt.runtime.driver import major
from fastblt.runtime.machine import package_version
from fastblt.runtime.problem import Problem

#: Module of each target.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: Major versions of CUDA that NVIDIA publishes packages of TensorRT for, as parts of the packages' names.
_FLAVORS = (13, 12, 11)
#: Versions of TensorRT that are supported, lowest and first one beyond; TensorRT-RTX has numbers of its own.
_TENSORRT_VERSIONS = ((10, 3), (12,))
#: How a compiler reports the memory that an engine's activations need.
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


class TensorRtError(ValueError):
    """Reports that TensorRT is missing, or has refused something, in its own words."""


@dataclass(frozen=True)
class TensorRtLibrary:
    """Wraps the module of an installed TensorRT or TensorRT-RTX."""

    target: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    module: Any

    @property
    def version(self) -> str:
        """Return its version."""
        return str(self.module.__version__)

    @property
    def label(self) -> str:
        """Return its name and version for messages: ``TensorRT-RTX 1.7.1``."""
        return f"{'TensorRT-RTX' if self.target == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    @property
    def updates_caches(self) -> bool:
        """Return whether it has layers for TensorScatter and Attention; without them, graphs must be lowered."""
        network = self.module.INetworkDefinition
        return hasattr(network, "add_kv_cache_update") and hasattr(network, "add_attention")

    def new_log(self) -> Any:
        """Return a logger that keeps errors for an exception, instead of printing them."""
        trt = self.module
        base: Any = trt.ILogger
        bad = (base.Severity.ERROR, base.Severity.INTERNAL_ERROR)

        class Log(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)
                self.errors: list[str] = []
                self.activations: list[int] = []
                """Bytes that activations need, as the compiler reports them for each profile."""

            def log(self, severity: Any, message: str) -> None:
                if severity in bad:
                    self.errors.append(message)
                elif found := _ACTIVATIONS.search(message):
                    self.activations.append(int(found[1]))

            def text(self) -> str:
                return "; ".join(self.errors) or "no reason given"

        return Log()


def load_library(target: str) -> TensorRtLibrary:
    """Import TensorRT.

    Args:
        target: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        TensorRtError: the target is unknown, or the package is missing, does not load, or has another version.
    """
    if target not in MODULES:
        raise TensorRtError(f"target: found {target!r}, expected one of {', '.join(MODULES)}")
    try:
        module = importlib.import_module(MODULES[target])
    except (ImportError, OSError, RuntimeError) as error:
        raise TensorRtError(
            f"{target}: the Python package {MODULES[target]} does not load ({error}), "
            f"expected it: pip install 'fastblt[{target}]'"
        ) from error
    library = TensorRtLibrary(target, module)
    if target == "tensorrt":
        lowest, beyond = _TENSORRT_VERSIONS
        numbers = tuple(int(part) for part in library.version.split(".")[:2])
        if not lowest <= numbers < beyond:
            raise TensorRtError(f"{target}: found version {library.version}, expected 10.3 or newer, below 12")
    return library


def flavor_problem(target: str, driver: str | None) -> Problem | None:
    """Return what is wrong with the CUDA that the package of a target was built for; None: nothing, or it is unknown.

    A package for an older CUDA than the driver's works. JetPack's packages do not name theirs, and fit its driver.

    Args:
        target: ``tensorrt`` or ``tensorrt-rtx``.
        driver: newest CUDA version that the driver supports; None: there is no driver.
    """
    found = [flavor for flavor in _FLAVORS if package_version(f"{target}-cu{flavor}-bindings") is not None]
    if driver is None or not found or min(found) <= major(driver):
        return None
    name, wanted = f"{target}-cu{min(found)}", major(driver)
    package = f"'fastblt[{target}-cu{wanted}]'" if target == "tensorrt-rtx" else f"'{target}-cu{wanted}>=10.3,<12'"
    return Problem(
        f"found {name}, which is for CUDA {min(found)}, and a driver for CUDA {driver}, expected {target}-cu{wanted}",
        f"pip uninstall {name} {name}-bindings {name}-libs; pip install {package} (or update the driver)",
    )
