"""``fastblt report``: writes a page about a bundle on this machine, from a new measurement or an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastblt.commands.bench_checks import check_bench
from fastblt.commands.bench_html import SampleRequest, write_page
from fastblt.commands.checks import check_backend, check_bundle, check_file_target
from fastblt.commands.errors import UsageError, usage_errors
from fastblt.commands.inspect_facts import read_facts
from fastblt.commands.options import BackendOption, BundleArgument, ProviderOption, ThreadsOption, split_names
from fastblt.commands.output import note, progress, stdout
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.measure.bench.run import BenchReport, BenchRequest, run_bench
from fastblt.runtime.measure.bench.saved import read_bench
from fastblt.runtime.measure.loading import bundle_dtype
from fastblt.runtime.methods.registry import bench_defaults

#: Number and size in bytes of the held-out prompts that are measured.
_PROMPTS, _PROMPT_BYTES = 8, 64
#: Options of a new measurement only.
_OF_MEASUREMENTS = ("methods", "against", "prompts", "max_new_bytes", "repeats")


def command(
    context: typer.Context,
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="HTML file to write.", show_default=False)],
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Take the figures from a file that `fastblt bench --json` wrote, instead of measuring; the texts are "
            "generated anew."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            help="Comma-separated methods; ar is always measured  [default: {bench_methods}]",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="Comma-separated opponents, as of `fastblt bench`: eager and eager-compiled (PyTorch), transformers."
        ),
    ] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Number of held-out prompts.")] = _PROMPTS,
    max_new_bytes: Annotated[
        int, typer.Option(min=2, help="Bytes to generate after each prompt.")
    ] = BenchRequest.max_new_bytes,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each prompt.")] = BenchRequest.repeats,
    prompt: Annotated[
        str | None, typer.Option(help="Text that the page lets each method continue  [default: a held-out one]")
    ] = None,
    backend: BackendOption = BenchRequest.backend,
    provider: ProviderOption = BenchRequest.provider,
    threads: ThreadsOption = None,
) -> None:
    """Write a page about a bundle: speed, cost, drafts, texts.

    The page is one HTML file that needs no other and no network. Send it, print it, open it anywhere.
    """
    if bench is not None:
        _check_options(context)
    check_file_target(out)
    check_bundle(bundle, backend=backend)
    check_backend(backend)
    if bench is None:
        with usage_errors():
            request = BenchRequest(
                methods=bench_defaults() if methods is None else tuple(split_names(methods)),
                against=tuple(split_names(against)),
                backend=backend,
                provider=provider,
                threads=threads,
                max_new_bytes=max_new_bytes,
                repeats=repeats,
            )
        report = _measure(bundle, request, heldout_prompts(prompts, _PROMPT_BYTES))
    else:
        report = read_bench(bench, read_facts(str(bundle), 1).config.name, bundle_dtype(bundle))
    texts = SampleRequest(backend, provider, threads, None if prompt is None else prompt.encode())
    write_page(out, bundle, report, texts, None if bench is None else bench.name)
    note(stdout(), f"{out}: open it in a browser")


def _check_options(context: Any) -> None:
    """Check that no option asks for a measurement where there is an earlier one."""
    for name in _OF_MEASUREMENTS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')}: found it with --bench, expected one of them")


def _measure(bundle: Path, request: BenchRequest, texts: list[bytes]) -> BenchReport:
    with usage_errors():
        check_bench(request)
    with progress("measuring", redraw=False) as on_progress:
        return run_bench(bundle, request, texts, on_progress)
