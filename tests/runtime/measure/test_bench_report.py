"""The report of a benchmark as a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fakes.bench_measurement import CONTRACT, measurement

from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport, BenchRequest
from fastblt.runtime.measure.report import write_json


def report_of(rows: list[BenchRow]) -> BenchReport:
    return BenchReport(BenchRequest(), measurement().plan, "tiny", "fp32", device_info(1), rows)


def test_report_is_whole_and_replaces_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    for _ in range(2):
        write_json(path, report_of(measurement().rows()).to_dict())
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report) == ["device", "replay", "rows"]
    assert report["replay"] is None
    assert all(row.keys() >= CONTRACT for row in report["rows"])
    assert [entry.name for entry in path.parent.iterdir()] == ["bench.json"]


def test_report_leaves_earlier_one_when_it_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("earlier", encoding="utf-8")
    bad = dataclasses.replace(measurement().rows()[0], bytes_per_s=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, report_of([bad]).to_dict())
    assert path.read_text(encoding="utf-8") == "earlier"
