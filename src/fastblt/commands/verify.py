"""``fastblt verify``: compares what a GPU computes with the CPU, tensor by tensor and byte by byte."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.commands.audit import print_audit, print_left_out
from fastblt.commands.checks import check_backend, check_bundle, check_file_target, check_methods
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import BundleArgument, JsonOption, MethodsOption, ProviderOption, WideOption, split_names
from fastblt.commands.output import add_row, left, make_table, print_table, progress, right, stdout
from fastblt.commands.polygraphy import PolygraphyOption, check_polygraphy_target, emulate, write_polygraphy
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.verify.run import VerifyReport, VerifyRequest, run_verify


def command(
    bundle: BundleArgument,
    backend: Annotated[
        str | None,
        typer.Option(help="What runs the model on the GPU: {backends}  [default: that of the bundle's engines]"),
    ] = None,
    provider: ProviderOption = VerifyRequest.provider,
    methods: MethodsOption = None,
    prompts: Annotated[
        int, typer.Option(min=1, help="Number of held-out prompts to compare texts of.")
    ] = VerifyRequest.prompts,
    max_new_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes to generate after each prompt.")
    ] = VerifyRequest.max_new_bytes,
    wide: WideOption = False,
    json: JsonOption = None,
    polygraphy: PolygraphyOption = None,
) -> None:
    """Compare a bundle on this machine's GPU with the CPU.

    First tensors: every method generates on both with the same inputs, and every output and cache is compared. Then
    whole texts, byte for byte. Exit status 0 means that all differences are rounding.
    """
    with usage_errors():
        chosen = None if methods is None else tuple(split_names(methods))
        request = VerifyRequest(backend, provider, chosen, prompts, max_new_bytes)
    check_methods(chosen)
    check_backend(backend)
    check_file_target(json)
    check_bundle(bundle)
    check_polygraphy_target(polygraphy, bundle)
    write_polygraphy(bundle, polygraphy)  # first: they are of use where the GPU fails
    texts = [load_text(corpus) for corpus in CORPORA]
    with progress("verifying") as on_progress:
        report = run_verify(bundle, request, texts, distinct_prompts(), on_progress, emulate=emulate)
    print_left_out(report.manifest.model, report.left_out)
    console = stdout()
    where = f"{report.backend} on {report.device}"
    title = f"{bundle}: {report.manifest.model}, {report.manifest.dtype}, {where}, against ONNX Runtime on the CPU"
    console.print(title, soft_wrap=True)
    print_table(console, _table(report, wide=wide))
    console.print()
    print_audit(console, report.rows, "onnxruntime (CPU)", report.tie_bound)
    console.print("passed" if report.passed else "FAILED")
    if json is not None:
        write_json(json, report.to_dict())
    report.check()


def _table(report: VerifyReport, *, wide: bool) -> Table:
    counted = ("calls", "values") if wide else ("calls",)
    headings = (*counted, "largest error", "allowed", "cosine", "")
    table = make_table(left("graph"), left("output"), *(right(heading) for heading in headings))
    for found in report.comparisons:
        limit = report.limit(found)
        add_row(
            table,
            found.graph,
            found.output,
            *(f"{getattr(found, name):,}" for name in counted),
            f"{found.max_error:.2g}",
            f"{limit.max_error:g}",
            f"{found.cosine:.6f}",
            "ok" if report.accepts(found) else "FAILED",
        )
    return table
