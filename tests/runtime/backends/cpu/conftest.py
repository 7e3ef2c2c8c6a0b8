"""Provides a backend on ONNX Runtime's CPU provider and its eager counterpart, of each tiny model."""

from __future__ import annotations

import pytest
from fakes.onnx_backends import OpenBackend, open_onnx

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.protocol import Backend


@pytest.fixture(scope="module", params=["embedding", "encoder"])
def decoder_input(request: pytest.FixtureRequest) -> str:
    """Name where the decoder's input comes from."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def onnx_backend(open_backend: OpenBackend, decoder_input: str) -> OnnxRuntimeBackend:
    """Load a backend for 900 bytes."""
    return open_onnx(open_backend, decoder_input, 900)


@pytest.fixture(scope="module")
def eager_backend(open_backend: OpenBackend, decoder_input: str) -> Backend:
    """Load its eager counterpart."""
    return open_backend("eager", decoder_input, 900)
