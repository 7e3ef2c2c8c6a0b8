"""``fastblt verify``: what a backend computes on this machine against the CPU, tensor by tensor and byte by byte."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.commands.audit import print_audit, print_left_out
from fastblt.commands.console import progress_bar, table_console
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.verify.run import VerifyReport, VerifyRequest, run_verify


def run(bundle: Path, request: VerifyRequest, json_file: Path | None) -> None:
    """Compare, audit, print, and fail where something differs; errors as in `run_verify` and `VerifyReport.check`."""
    console = table_console()
    texts = [load_text(corpus) for corpus in CORPORA]
    with progress_bar("verifying") as on_progress:
        report = run_verify(bundle, request, texts, distinct_prompts(), on_progress, emulate=_emulate)
    print_left_out(console, report.manifest.model, report.left_out)
    where = f"{report.backend} on {report.device}"
    title = f"{bundle}: {report.manifest.model}, {report.manifest.dtype}, {where}, against ONNX Runtime on the CPU"
    console.print(title, soft_wrap=True)
    console.print(_table(report))
    print_audit(console, report.rows, "onnxruntime (CPU)", report.tie_bound)
    console.print("passed" if report.passed else "FAILED")
    if json_file is not None:
        write_json(json_file, report.to_dict())
    report.check()


def _emulate(bundle: Path, twin: Path) -> None:
    """Write a bf16 bundle's twin that CPUs run; needs the packages of the ``export`` extra."""
    from fastblt.export.emulation import emulate_bf16

    emulate_bf16(bundle, twin)


def _table(report: VerifyReport) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("graph", "output"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "values", "max error", "limit", "cosine", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for found in report.comparisons:
        limit = report.limit(found)
        table.add_row(
            found.graph,
            found.output,
            f"{found.calls:,}",
            f"{found.values:,}",
            f"{found.max_error:.2g}",
            f"{limit.max_error:g}",
            f"{found.cosine:.6f}",
            "ok" if limit.accepts(found) else "FAILED",
        )
    return table
