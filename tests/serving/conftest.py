"""One server for all tests: a tiny random model with room for short texts, in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.served import Served, serve

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving.settings import ServingSettings

MAX_BYTES = 640


@pytest.fixture(scope="session")
def runtime(tiny_bundle: Path) -> BltRuntime:
    """What the servers of the tests serve."""
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=MAX_BYTES, sequences=4, threads=1)


@pytest.fixture(scope="session")
def reference(tiny_bundle: Path) -> BltRuntime:
    """What the texts of a server are compared with."""
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=MAX_BYTES, sequences=1, threads=1, reuse_prompts=False)


@pytest.fixture(scope="session")
def served(runtime: BltRuntime) -> Iterator[Served]:
    """The server of all tests that do not need one of their own."""
    with serve(runtime, ServingSettings(workers=2)) as found:
        yield found
