"""Registers the backend ``eager``: PyTorch, which is imported only when the backend is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastblt.runtime.backends.entry import BackendEntry, LoadRequest

if TYPE_CHECKING:
    from fastblt.runtime.backends.protocol import Backend


def _load(request: LoadRequest) -> Backend:
    from fastblt.runtime.backends.eager.backend import EagerBackend

    return EagerBackend.load(request.folder, request.provider, request.max_bytes, request.threads)


ENTRY = BackendEntry(
    name="eager",
    summary="eager PyTorch, the reference; needs the export extra",
    load=_load,
    devices=("cpu", "cuda"),
    providers=("auto", "cpu", "cuda"),
    reads_checkpoints=True,
)
