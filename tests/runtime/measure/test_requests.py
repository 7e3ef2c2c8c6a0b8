from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastblt.runtime.measure.audit.comparison import AuditRow
from fastblt.runtime.measure.audit.run import AuditError, AuditReport, AuditRequest
from fastblt.runtime.measure.bench.run import BenchRequest, run_bench
from fastblt.runtime.measure.scoring.run import EvalRequest
from fastblt.runtime.measure.verify.run import VerifyRequest
from fastblt.runtime.methods.registry import bench_defaults
from fastblt.runtime.progress import no_progress, part_of


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BenchRequest(max_new_bytes=1), "max_new_bytes: found 1, expected a whole number >= 2"),
        (lambda: BenchRequest(repeats=0), "repeats: found 0, expected a whole number >= 1"),
        (lambda: BenchRequest(threads=0), "threads: found 0"),
        (lambda: BenchRequest(max_bytes=0), "max_bytes: found 0"),
        (lambda: AuditRequest(prompts=0), "prompts: found 0"),
        (lambda: AuditRequest(bytes=0), "bytes: found 0"),
        (lambda: AuditRequest(prompts=3, bytes=3), "audit: found both prompts and bytes, expected one of them"),
        (lambda: VerifyRequest(prompts=0), "prompts: found 0"),
        (lambda: VerifyRequest(max_new_bytes=0), "max_new_bytes: found 0"),
        (lambda: EvalRequest(windows=0), "windows: found 0"),
        (lambda: EvalRequest(window_bytes=0), "window_bytes: found 0"),
        (lambda: EvalRequest(backend="eager", against="eager"), "against: found 'eager', expected another backend"),
    ],
)
def test_requests_refuse_what_is_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


def test_methods_of_a_benchmark_are_the_registrys() -> None:
    assert BenchRequest().methods == bench_defaults()


def test_benchmark_runs_from_python_and_reports_every_step(tiny_bundle: Path) -> None:
    told: list[tuple[int, int, str]] = []
    request = BenchRequest(methods=("s:2",), provider="cpu", threads=1, max_new_bytes=8)
    report = run_bench(tiny_bundle, request, [b"one", b"three"], lambda *each: told.append(each))
    assert [row.method for row in report.rows] == ["ar", "s:2"]
    assert (report.model, report.dtype, report.rows[0].prompt_bytes) == ("tiny", "fp32", 8)
    assert [each[:2] for each in told] == [(done, 6) for done in range(7)]
    assert list(report.to_dict()) == ["device", "replay", "rows"]
    with pytest.raises(ValueError, match="found 0 prompts"):
        run_bench(tiny_bundle, request, [])


def test_report_of_an_audit_without_enough_bytes_is_an_error() -> None:
    rows = [AuditRow("eager", "ar", bytes=9)]
    report = AuditReport(Path("bundle"), AuditRequest(bytes=10), "eager", 1e-4, rows, (), "tiny")
    with pytest.raises(AuditError, match="found 9 bytes after all held-out prompts, expected 10"):
        report.check()


def test_parts_of_a_work_report_their_place_in_it() -> None:
    told: list[tuple[int, int, str]] = []
    part = part_of(lambda *each: told.append(each), 10, 30, "second")
    part(0, 20, "")
    part(20, 20, "step")
    assert told == [(10, 30, "second"), (30, 30, "second step")]
    no_progress(0, 1, "")
