"""A fleet of two replicas on this machine: every case of `fleet_cases.py`, in one process with one cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of replicas in /proc")
def test_two_replicas(tiny_bundle: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Every process of Ray imports a lot: they share what the first one has compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    arguments = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-s", str(FOLDER / "fleet_cases.py")]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env={**environment, "FASTBLT_FLEET_BUNDLE": str(tiny_bundle)},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-5_000:]
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout
