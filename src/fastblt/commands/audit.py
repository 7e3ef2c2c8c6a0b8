"""``fastblt audit``: every method against the reference, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fastblt.commands.console import progress_bar
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.measure.audit.comparison import AuditRow
from fastblt.runtime.measure.audit.run import AuditRequest, run_audit
from fastblt.runtime.measure.audit.ties import Difference
from fastblt.runtime.measure.report import write_json


def run(bundle: Path, request: AuditRequest, json_file: Path | None) -> None:
    """Generate, compare, print a table; errors as in `run_audit` and `AuditReport.check`."""
    console = Console(highlight=False)
    with progress_bar("audit") as on_progress:
        report = run_audit(bundle, request, distinct_prompts(), on_progress)
    print_left_out(console, report.model, report.left_out)
    print_audit(console, report.rows, report.reference, report.bound)
    if json_file is not None:
        write_json(json_file, report.to_dict())
    report.check()


def print_left_out(console: Console, model: str, methods: Sequence[str]) -> None:
    """Name the default methods that a model cannot run."""
    if methods:
        console.print(f"left out, {model} cannot run them: {', '.join(methods)}", soft_wrap=True)


def print_audit(console: Console, rows: list[AuditRow], reference: str, bound: float) -> None:
    """A table of what was found, and each difference."""
    table = Table(box=box.SIMPLE)
    for name in ("method", "prompts", "bytes", "identical", "ties", "faults", "as ar"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        counts = (row.prompts, row.bytes, row.identical, len(row.ties), len(row.faults))
        same = f"{row.bytes_as_ar / row.ar_bytes:.1%}" if row.ar_bytes else "-"
        table.add_row(row.method, *(f"{value:,}" for value in counts), same)
    console.print(table)
    for row in rows:
        for kind, differences in (("tie", row.ties), ("FAULT", row.faults)):
            for d in differences:
                console.print(f"{kind}: {row.method}, {_describe(d)}", soft_wrap=True)
    console.print(
        f"{rows[0].backend} against {reference} ar; a method that is not lossless against {reference} with the same "
        f"method. A tie is a first difference where one of the reference's choices was within {bound:g}. As ar: bytes "
        "before the first difference from the reference's ar.",
        soft_wrap=True,
    )


def _describe(d: Difference) -> str:
    order = "" if d.order_gap is None else f"other bytes of the block would be next by {d.order_gap:.2e}, "
    patches = (
        "no entropies" if d.boundary_gap is None else f"nearest entropy {d.boundary_gap:.2e} nats from the threshold"
    )
    return f"prompt {d.prompt}, new byte {d.offset}: logits {d.logit_gap:.2e} apart, {order}{patches}"
