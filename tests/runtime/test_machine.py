"""What is known about the machine: its bandwidth, its description and the memory of this process."""

from __future__ import annotations

import json

import fastblt
from fastblt.runtime.machine import device_info, memory_bandwidth, peak_rss_mb


def test_bandwidth_is_of_all_threads() -> None:
    assert 0.1 < memory_bandwidth(8) < 10_000
    assert 0.1 < memory_bandwidth(8, threads=3) < 10_000


def test_device_info_names_machine_and_versions() -> None:
    info = device_info(3)
    assert info["cpu"]
    assert info["cores"] >= info["usable_cores"] >= 1
    assert info["threads"] == 3
    assert info["versions"]["fastblt"] == fastblt.__version__
    assert "numpy" in info["versions"]
    assert json.loads(json.dumps(info)) == info


def test_peak_memory_is_that_of_a_python_process() -> None:
    peak = peak_rss_mb()
    assert peak is None or 5 < peak < 1e6
