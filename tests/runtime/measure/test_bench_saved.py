"""Reports of benchmarks that are read back from their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.bench_measurement import EAGER, ORT
from fakes.report_content import report

from fastblt.runtime.measure.bench.plan import Contender
from fastblt.runtime.measure.bench.saved import BenchFileError, read_bench
from fastblt.runtime.measure.report import write_json

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Change], Path]:
    """``changed(change)``: a file whose content was changed."""

    def write(change: Change) -> Path:
        path = tmp_path / "bench.json"
        data = json.loads(json.dumps(report().to_dict()))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


def test_report_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_json(path, report().to_dict())
    found = read_bench(path, "model", "fp32")
    assert found.rows == report().rows
    assert found.plan == report().plan
    assert found.to_dict() == report().to_dict()
    assert (found.model, found.dtype, found.request.backend) == ("model", "fp32", ORT)


def test_reports_of_earlier_versions_lack_figures(tmp_path: Path) -> None:
    data = json.loads((RESULTS / "bench-cpu.json").read_text(encoding="utf-8"))
    for row in data["rows"]:
        for name in ("pytorch_baseline", "ratio_to_pytorch_ar", "nfe_draft"):
            del row[name]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    found = read_bench(path, "blt-d-8m", "fp32")
    assert {row.pytorch_baseline for row in found.rows} == {None}
    assert {row.nfe_draft for row in found.rows} == {0}
    assert found.plan.reference(Contender(EAGER, "ar")) == Contender(ORT, "ar")
    assert read_bench(RESULTS / "replay-mid.json", "mid", "fp32").request.replay == "paper"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data["rows"][1].pop("bytes"), r"entry 'rows\[1\]\.bytes': found None, expected an integer"),
        (
            lambda data: data["rows"][0].update(bytes_per_s="9"),
            r"'rows\[0\]\.bytes_per_s': found '9', expected a number",
        ),
        (lambda data: data["rows"][0].update(lossless=1), r"'rows\[0\]\.lossless': found 1, expected true or false"),
        (
            lambda data: data["rows"][0]["us_per_byte"].update(host=[]),
            r"us_per_byte\.host': found \[\], expected a number",
        ),
        (lambda data: data.update(rows=[]), r"entry 'rows': found \[\], expected at least one"),
        (lambda data: data["device"].update(gpus=[1]), r"entry 'device\.gpus': found \[1\], expected a list of names"),
        (lambda data: data.pop("device"), r"entry 'device': found None, expected an object"),
        (lambda data: data.update(streams=[1]), r"bench\.json: found figures of texts that grow together"),
    ],
)
def test_anything_else_is_one_error(changed: Callable[[Change], Path], change: Change, expected: str) -> None:
    with pytest.raises(BenchFileError, match=expected):
        read_bench(changed(change), "model", "fp32")


def test_file_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        BenchFileError, match=r"bench\.json: not JSON .* expected a file that `fastblt bench --json` wrote"
    ):
        read_bench(tmp_path / "bench.json", "model", "fp32")
