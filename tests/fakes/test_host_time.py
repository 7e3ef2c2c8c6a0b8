"""The script that measures the host's time runs with the backend of today."""

from __future__ import annotations

from pathlib import Path

from fakes.host_time import autoregressive, drafting, idle_backend


def test_bytes_and_drafts_are_measured(demo_bundle: Path) -> None:
    backend = idle_backend(demo_bundle)
    assert autoregressive(backend) > 0
    assert drafting(backend) > 0
