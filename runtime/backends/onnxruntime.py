"""Registers the backend ``onnxruntime``: ONNX Runtime on the CPU or on a GPU, as the provider decides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastblt.runtime.backends.entry import BackendEntry, LoadRequest
from fastblt.runtime.progress import OnProgress, no_progress

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
    from fastblt.runtime.backends.gpu.backend import DeviceBackend

    #: ONNX Runtime on the CPU, or on a GPU.
    OnnxRuntime: TypeAlias = OnnxRuntimeBackend | DeviceBackend


def load_onnxruntime(
    folder: Path,
    provider: str,
    max_bytes: int,
    threads: int | None = None,
    options: Any = None,
    *,
    row_floor: int = 1,
    warm_up: bool = False,
    sequences: int | None = None,
    on_progress: OnProgress = no_progress,
) -> OnnxRuntime:
    """Load a bundle into ONNX Runtime, on the CPU or on a GPU.

    Args:
        folder: of the bundle.
        provider: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
        max_bytes: longest prompt plus new bytes.
        threads: of one operator on the CPU; None: as many as suit the model.
        options: an ``onnxruntime.SessionOptions`` that replaces ours and ``threads``; None: ours.
        row_floor: fewest rows of a call on a GPU, a power of two.
        warm_up: on a GPU, bind and record all that generations can need.
        sequences: most at once; None: on a CPU as memory allows, on a GPU one.
        on_progress: called while that is done.

    Raises:
        ProviderError: the provider is unknown or does not work on this machine.
        BundleError: the bundle is damaged, or a graph cannot be loaded.
        ConfigError: the configuration is invalid.
        CudaError: the provider needs a GPU, and there is none that can be used.
    """
    from fastblt.runtime.backends.providers import choose_provider

    device = choose_provider(provider)
    if device == "cpu":
        from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend.load(folder, max_bytes, threads, options, sequences)
    from fastblt.runtime.backends.gpu import loading

    backend = loading.load_onnxruntime(folder, device, max_bytes, options, row_floor=row_floor, sequences=sequences)
    if warm_up:
        backend.warm_up(on_progress)
    return backend


def _load(request: LoadRequest) -> OnnxRuntime:
    return load_onnxruntime(
        request.folder,
        request.provider,
        request.max_bytes,
        request.threads,
        row_floor=request.row_floor,
        warm_up=request.warm_up,
        sequences=request.sequences,
        on_progress=request.on_progress,
    )


ENTRY = BackendEntry(
    name="onnxruntime",
    summary="ONNX Runtime",
    load=_load,
    devices=("cpu", "cuda"),
    providers=("auto", "cpu", "cuda", "tensorrt"),
)
