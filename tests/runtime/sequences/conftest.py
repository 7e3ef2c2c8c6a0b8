"""Provides a runtime with two places over a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.blt_runtime import BltRuntime


@pytest.fixture(scope="session")
def tiny_backend(tiny_bundle: Path) -> OnnxRuntimeBackend:
    """Has places for two texts of 200 bytes."""
    return OnnxRuntimeBackend.load(tiny_bundle, 200, 1, sequences=2)


@pytest.fixture
def runtime(tiny_backend: OnnxRuntimeBackend) -> Iterator[BltRuntime]:
    found = BltRuntime(tiny_backend)
    yield found
    for place in found._pool._places:  # the traceback of an expected error may refer to them for a while
        place.session.close()
