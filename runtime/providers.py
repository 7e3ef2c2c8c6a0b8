"""Which ONNX Runtime execution provider really works here.

`onnxruntime.get_available_providers()` lists what the package was built with, not what can load, and a session
that asks for CUDA without it falls back to the CPU with a printed error. So: probe, and compare.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import onnxruntime as ort

logger = logging.getLogger(__name__)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# y = x for a float: the smallest model that makes a provider load its libraries. Made with
# onnx.helper: Identity, opset 13, IR 8, input and output FLOAT[1].
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a00100d"
)


class ProviderError(ValueError):
    """A provider that cannot be used on this machine."""


@functools.cache
def cuda_works() -> bool:
    """Whether the CUDA provider loads and runs; tried once, quietly."""
    if PROVIDERS["cuda"] not in ort.get_available_providers() or not _has_nvidia_driver():
        return False
    try:
        ort.preload_dlls()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(_IDENTITY, options, providers=[PROVIDERS["cuda"]])
        session.run(None, {"x": np.zeros(1, dtype=np.float32)})
    except Exception as error:
        logger.info("CUDA provider does not work here: %s", error)
        return False
    return bool(session.get_providers()[0] == PROVIDERS["cuda"])


def _has_nvidia_driver() -> bool:
    """Whether the driver library can be loaded; without it ONNX Runtime would print errors."""
    import ctypes

    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def choose_provider(name: str) -> str:
    """``cpu`` or ``cuda`` for what the user asked.

    Raises:
        ProviderError: the name is unknown, or CUDA was asked for and does not work.
    """
    if name == "auto":
        # Not CUDA, even where it loads, until an audit has passed on a GPU.
        return "cpu"
    if name not in PROVIDERS:
        raise ProviderError(f"provider: found {name!r}, expected auto, {', '.join(PROVIDERS)}")
    if name == "cuda" and not cuda_works():
        raise ProviderError("provider: found 'cuda', but ONNX Runtime's CUDA provider does not load on this machine")
    return name


def check_session(session: Any, provider: str, path: str) -> None:
    """Refuse a session that fell back to another provider.

    Raises:
        ProviderError: it did.
    """
    found = session.get_providers()[0]
    if found != PROVIDERS[provider]:
        raise ProviderError(f"{path}: session runs on {found}, expected {PROVIDERS[provider]}")
