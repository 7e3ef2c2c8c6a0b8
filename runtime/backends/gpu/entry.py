"""Registers the backends ``tensorrt`` and ``tensorrt-rtx``: engines that ``fastblt compile`` built from a bundle.

They are not ONNX Runtime's *execution provider* of the name ``tensorrt``, an option of the backend ``onnxruntime``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastblt.runtime.backends.entry import BackendEntry, LoadRequest, exact_capacity

if TYPE_CHECKING:
    from fastblt.runtime.backends.protocol import Backend


def _entry(target: str, library: str) -> BackendEntry:
    """Return the entry of one TensorRT."""

    def load(request: LoadRequest) -> Backend:
        from fastblt.runtime.backends.gpu.loading import load_tensorrt

        backend = load_tensorrt(request.folder, target, request.max_bytes, request.row_floor, request.sequences)
        if request.warm_up:
            backend.warm_up(request.on_progress)
        return backend

    return BackendEntry(
        name=target,
        summary=f"{library} engines, built by fastblt compile",
        load=load,
        devices=("cuda",),
        providers=("auto", "cuda"),
        default_capacity=exact_capacity,
    )


TENSORRT = _entry("tensorrt", "TensorRT")
TENSORRT_RTX = _entry("tensorrt-rtx", "TensorRT-RTX")
