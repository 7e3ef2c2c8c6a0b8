"""``fastblt bench``: measures decoding methods, prints tables and writes a JSON file."""

from __future__ import annotations

from typing import Annotated

import typer

from fastblt.commands.bench_tables import bench_tables, describe_measurement
from fastblt.commands.checks import check_backend, check_bundle, check_file_target
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import (
    BackendOption,
    BundleArgument,
    JsonOption,
    MaxBytesOption,
    ProviderOption,
    ThreadsOption,
    WideOption,
    split_names,
)
from fastblt.commands.output import note, print_table, progress, stdout
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.measure.bench.plan import make_bench_plan
from fastblt.runtime.measure.bench.run import BenchRequest, run_bench
from fastblt.runtime.measure.peers import PEERS
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.methods.registry import bench_defaults

#: What the figures of a replay are, above its tables.
_REPLAY_NOTE = "real graphs and control flow at the given rates; the text is not the model's: nothing about quality."


def command(
    bundle: BundleArgument,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated methods; ar is always measured  [default: {bench_methods}]"),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="Comma-separated opponents to measure as well: BACKEND (its ar), BACKEND/METHOD, or transformers "
            "(its generate without a cache; BLT models only)."
        ),
    ] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Number of held-out prompts.")] = 8,
    prompt_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each prompt.")] = 64,
    corpora: Annotated[
        str,
        typer.Option(help="Comma-separated corpora to take prompts from, one after the other  [default: all in turn]"),
    ] = "",
    max_new_bytes: Annotated[
        int, typer.Option(min=2, help="Bytes to generate after each prompt.")
    ] = BenchRequest.max_new_bytes,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each prompt.")] = BenchRequest.repeats,
    replay: Annotated[
        str | None,
        typer.Option(
            help="Measure cost without trained weights: run the real graphs, but accept drafts, denoise blocks and end "
            "patches at given rates. Comma-separated: acceptance=0.91, steps=2.92, patch=2.05; METHOD/acceptance=0.77 "
            "or METHOD/steps=2.92 for one method; or paper, the 1B figures of arXiv 2605.08044."
        ),
    ] = None,
    wide: WideOption = False,
    json: JsonOption = None,
    backend: BackendOption = BenchRequest.backend,
    provider: ProviderOption = BenchRequest.provider,
    threads: ThreadsOption = None,
    max_bytes: MaxBytesOption = None,
) -> None:
    """Measure the speed of a bundle's decoding methods.

    All methods run in turn in one process, greedily, on the same held-out prompts, and their output is compared. A
    --replay measures speed and cost only.
    """
    with usage_errors():
        sources = split_names(corpora)
        request = BenchRequest(
            methods=bench_defaults() if methods is None else tuple(split_names(methods)),
            against=tuple(split_names(against)),
            backend=backend,
            provider=provider,
            threads=threads,
            max_bytes=max_bytes,
            max_new_bytes=max_new_bytes,
            repeats=repeats,
            replay=replay,
        )
        _check(request)
        texts = heldout_prompts(prompts, prompt_bytes, sources)
    check_file_target(json)
    check_bundle(bundle, backend=backend)
    with progress("measuring", redraw=False) as on_progress:
        report = run_bench(bundle, request, texts, on_progress)
    if json is not None:
        write_json(json, report.to_dict())
    console = stdout()
    if replay is not None:
        note(console, f"REPLAY ({replay}): {_REPLAY_NOTE}")
        console.print()
    for table in bench_tables(report, wide=wide):
        print_table(console, table)
        console.print()
    for line in describe_measurement(report, sources, wide=wide):
        note(console, line)


def _check(request: BenchRequest) -> None:
    """Check methods, backends and the replay of a request before anything is loaded."""
    plan = make_bench_plan(request.backend, request.methods, request.against)
    for name in plan.backends:
        check_backend(None if name in PEERS else name)
    if request.replay is not None:
        ReplayRates.parse(request.replay, plan.methods)
