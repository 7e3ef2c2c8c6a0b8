"""Provides a runtime whose batches are watched."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from fakes.watched_batch import WatchedBackend

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=600, threads=1, sequences=24, reuse_prompts=False)


@pytest.fixture
def watched(alone: BltRuntime) -> WatchedBackend:
    return WatchedBackend(alone.backend)


@pytest.fixture
def runtime(watched: WatchedBackend) -> BltRuntime:
    return BltRuntime(cast("Backend", watched))
