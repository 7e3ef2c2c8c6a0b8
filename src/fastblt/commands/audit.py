"""``fastblt audit``: compares every method with the reference, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from fastblt.commands.checks import check_backend, check_bundle, check_file_target, check_methods
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import (
    BackendOption,
    BundleArgument,
    JsonOption,
    MethodsOption,
    ProviderOption,
    split_names,
)
from fastblt.commands.output import (
    add_row,
    left,
    make_table,
    note,
    percent,
    print_table,
    progress,
    right,
    stderr,
    stdout,
)
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.measure.audit.comparison import AuditRow
from fastblt.runtime.measure.audit.run import DEFAULT_PROMPTS, AuditRequest, run_audit
from fastblt.runtime.measure.audit.ties import Difference
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.requests import MOST_STREAMS


def command(
    bundle: BundleArgument,
    methods: MethodsOption = None,
    backend: BackendOption = AuditRequest.backend,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Backend whose output is the truth, one of {backend_names}  [default: eager; for a quantized bundle, "
            "which PyTorch computes differently, the audited backend itself]"
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help=f"Number of held-out prompts  [default: {DEFAULT_PROMPTS}]"),
    ] = None,
    bytes: Annotated[  # the option's name
        int | None,
        typer.Option(min=1, help="Continue until every method has written this many bytes (instead of --prompts)."),
    ] = None,
    max_new_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes to generate after each prompt.")
    ] = AuditRequest.max_new_bytes,
    streams: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_STREAMS,
            help="Texts that grow together, after prompts of mixed lengths, and share calls of the model where the "
            "backend can; each has to be what it is alone.",
        ),
    ] = AuditRequest.streams,
    json: JsonOption = None,
    provider: ProviderOption = AuditRequest.provider,
) -> None:
    """Check that every method writes the bytes it has to write.

    The text of a lossless method is compared with what the reference backend writes byte by byte (ar), that of any
    other with the same method's on the reference backend. A first difference where the reference itself was
    undecided to within rounding is a tie; any other is a fault, and the command fails.
    """
    with usage_errors():
        chosen = None if methods is None else tuple(split_names(methods))
        request = AuditRequest(chosen, backend, reference, provider, prompts, max_new_bytes, bytes, streams)
    check_methods(chosen)
    for name in (backend, reference):
        check_backend(name)
    check_file_target(json)
    check_bundle(bundle)
    with progress("audit") as on_progress:
        report = run_audit(bundle, request, distinct_prompts(), on_progress)
    print_left_out(report.model, report.left_out)
    print_audit(stdout(), report.rows, report.reference, report.bound)
    if streams > 1:
        how = f"one call at a time ({report.alone_because})" if report.alone_because else "calls were shared"
        note(stdout(), f"{streams} texts at once: {how}.")
    if json is not None:
        write_json(json, report.to_dict())
    report.check()


def print_left_out(model: str, methods: Sequence[str]) -> None:
    """Name the default methods that a model cannot run."""
    if methods:
        note(stderr(), f"left out, {model} cannot run them: {', '.join(methods)}")


def print_audit(console: Console, rows: list[AuditRow], reference: str, bound: float) -> None:
    """Print a table of what was found, each difference, and what the columns mean."""
    headings = ("texts", "bytes", "right", "ties", "faults", "as ar up to")
    table = make_table(left("method"), *(right(heading) for heading in headings))
    for row in rows:
        counts = (row.prompts, row.bytes, row.identical, len(row.ties), len(row.faults))
        same = percent(row.bytes_as_ar / row.ar_bytes if row.ar_bytes else None)
        add_row(table, row.method, *(f"{value:,}" for value in counts), same)
    print_table(console, table)
    for row in rows:
        for kind, differences in (("tie", row.ties), ("FAULT", row.faults)):
            for d in differences:
                console.print(f"{kind}: {row.method}, {_describe(d)}", soft_wrap=True)
    note(
        console,
        f"{rows[0].backend} against {reference} ar; a method that is not lossless: against {reference} with the same "
        f"method. Tie: the first difference is where one of the reference's choices was within {bound:g}. As ar up to: "
        "share of the reference's ar before the first difference from it.",
    )


def _describe(d: Difference) -> str:
    parts = [f"prompt {d.prompt}, new byte {d.offset}: logits {d.logit_gap:.2e} apart"]
    if d.order_gap is not None:
        parts.append(f"other bytes of the block would be next by {d.order_gap:.2e}")
    if d.boundary_gap is not None:
        parts.append(f"nearest entropy {d.boundary_gap:.2e} nats from the threshold")
    if d.as_alone is not None:
        parts.append("alone the same text" if d.as_alone else "alone another text")
    return ", ".join(parts)
