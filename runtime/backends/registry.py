"""Implementations of `fastblt.runtime.backends.protocol.Backend`, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastblt.runtime.backends.protocol import Backend

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
    from fastblt.runtime.backends.gpu.backend import DeviceBackend

    #: ONNX Runtime on the CPU, or on the GPU.
    OnnxRuntime: TypeAlias = OnnxRuntimeBackend | DeviceBackend

BACKENDS = ("onnxruntime", "eager", "tensorrt", "tensorrt-rtx")


def load_backend(bundle: Path, name: str, provider: str, max_bytes: int, threads: int | None) -> Backend:
    """Load a bundle into a backend; only the chosen one is imported (ONNX Runtime needs no PyTorch).

    Raises:
        ValueError: unknown backend.
    """
    if name == "onnxruntime":
        return load_onnxruntime(bundle, provider, max_bytes, threads)
    if name == "eager":
        from fastblt.runtime.backends.eager.backend import EagerBackend

        return EagerBackend.load(bundle, provider, max_bytes, threads)
    if name in ("tensorrt", "tensorrt-rtx"):
        from fastblt.runtime.backends.gpu.loading import load_tensorrt

        if provider not in ("auto", "cuda"):
            raise ValueError(f"provider: found {provider!r}, expected auto or cuda with backend {name}")
        return load_tensorrt(bundle, name, max_bytes)
    raise ValueError(f"backend: found {name!r}, expected one of {', '.join(BACKENDS)}")


def default_capacity(name: str, needed: int) -> int:
    """``max_bytes`` for a text of ``needed`` bytes where the user does not say.

    Buffers on the CPU are only reserved, so there is room for more; engines cost by their capacity.
    """
    return needed if name.startswith("tensorrt") else max(4096, needed)


def load_onnxruntime(
    bundle: Path, provider: str, max_bytes: int, threads: int | None = None, options: Any = None
) -> OnnxRuntime:
    """Load a bundle into ONNX Runtime, on the CPU or on the GPU.

    ``options``, an ``onnxruntime.SessionOptions``, takes the place of ours and of ``threads``; the other arguments and
    errors are those of `fastblt.runtime.blt_runtime.BltRuntime.from_pretrained`.
    """
    from fastblt.runtime.backends.providers import choose_provider

    device = choose_provider(provider)
    if device == "cpu":
        from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend.load(bundle, max_bytes, threads, options)
    from fastblt.runtime.backends.gpu import loading

    return loading.load_onnxruntime(bundle, device, max_bytes, options)
