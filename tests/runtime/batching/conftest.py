"""Provides a runtime whose batches are watched."""

from __future__ import annotations

from typing import cast

import pytest
from fakes.watched_batch import WatchedBackend

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime


@pytest.fixture
def runtime(watched: WatchedBackend) -> BltRuntime:
    return BltRuntime(cast("Backend", watched))
