"""Registers ``eager`` and ``eager-compiled``: PyTorch, which is imported only when a backend is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastblt.runtime.backends.entry import BackendEntry, LoadRequest

if TYPE_CHECKING:
    from fastblt.runtime.backends.protocol import Backend


def _load(request: LoadRequest) -> Backend:
    from fastblt.runtime.backends.eager.backend import EagerBackend

    return EagerBackend.load(
        request.folder, request.provider, request.max_bytes, request.threads, sequences=request.sequences
    )


def _load_reference(request: LoadRequest) -> Backend:
    from fastblt.runtime.backends.eager.backend import EagerBackend

    return EagerBackend.load(
        request.folder, request.provider, request.max_bytes, request.threads, exact=True, sequences=request.sequences
    )


def _load_compiled(request: LoadRequest) -> Backend:
    from fastblt.runtime.backends.eager.compiled_backend import CompiledBackend

    return CompiledBackend.load(
        request.folder, request.provider, request.max_bytes, request.threads, sequences=request.sequences
    )


EAGER = BackendEntry(
    name="eager",
    summary="eager PyTorch, the reference and a baseline; needs the export extra",
    load=_load,
    load_reference=_load_reference,
    devices=("cpu", "cuda"),
    providers=("auto", "cpu", "cuda"),
    reads_checkpoints=True,
)
COMPILED = BackendEntry(
    name="eager-compiled",
    summary="PyTorch with torch.compile, the faster baseline; compiles for minutes",
    load=_load_compiled,
    devices=("cpu", "cuda"),
    providers=("auto", "cpu", "cuda"),
    reads_checkpoints=True,
)
