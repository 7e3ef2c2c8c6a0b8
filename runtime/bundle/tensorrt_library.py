"""TensorRT and TensorRT-RTX as one: which module, which version, what it can do (found by looking, not by version)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

#: Module of each target.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: Versions of TensorRT that are supported, lowest and first one beyond; TensorRT-RTX has numbers of its own.
_TENSORRT_VERSIONS = ((10, 3), (12,))


class TensorRtError(ValueError):
    """TensorRT is missing, or refuses something; the message is its own."""


@dataclass(frozen=True)
class TensorRtLibrary:
    """An importable TensorRT."""

    target: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    module: Any

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.module.__version__)

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{'TensorRT-RTX' if self.target == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    @property
    def updates_caches(self) -> bool:
        """Whether there are layers for standard graphs: TensorScatter and Attention. Else graphs must be lowered."""
        network = self.module.INetworkDefinition
        return hasattr(network, "add_kv_cache_update") and hasattr(network, "add_attention")

    def new_log(self) -> Any:
        """A logger that keeps what went wrong, for an exception, instead of printing it."""
        trt = self.module
        base: Any = trt.ILogger
        bad = (base.Severity.ERROR, base.Severity.INTERNAL_ERROR)

        class Log(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in bad:
                    self.errors.append(message)

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
