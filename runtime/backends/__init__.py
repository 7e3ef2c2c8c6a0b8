"""Implementations of `fastblt.runtime.backend.Backend`, by name."""

from __future__ import annotations

from pathlib import Path

from fastblt.runtime.backend import Backend

BACKENDS = ("onnxruntime", "eager")


def load_backend(bundle: Path, name: str, provider: str, max_bytes: int, threads: int | None) -> Backend:
    """Load a bundle into a backend; only the chosen one is imported (ONNX Runtime needs no PyTorch).

    Raises:
        ValueError: unknown backend.
    """
    if name == "onnxruntime":
        from fastblt.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend.load(bundle, provider, max_bytes, threads)
    if name == "eager":
        from fastblt.runtime.backends.eager import EagerBackend

        return EagerBackend.load(bundle, provider, max_bytes, threads)
    raise ValueError(f"backend: found {name!r}, expected one of {', '.join(BACKENDS)}")
