"""``fastblt tune``: finds the fastest settings for this machine and the user's prompts, and keeps them."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fastblt.commands.checks import check_backend, check_bundle, check_file_target, check_methods
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import BackendOption, BundleArgument, JsonOption, ProviderOption, numbers, split_names
from fastblt.commands.output import add_row, left, make_table, note, print_table, progress, right, stdout
from fastblt.commands.prompts import heldout_prompts, read_prompts
from fastblt.models.limits import THREADS
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.tune.profile import Profile, write_profile
from fastblt.runtime.measure.tune.race import FEWEST_ROUNDS, Standing
from fastblt.runtime.measure.tune.run import TuneReport, TuneRequest, profiles, run_tune
from fastblt.runtime.measure.tune.settings import Setting

#: Number and bytes of the held-out prompts: all that ship.
_PROMPTS, _PROMPT_BYTES = 96, 64


def command(
    bundle: BundleArgument,
    against: Annotated[
        str, typer.Option(help="Comma-separated other bundles of the model to compare with, such as quantized ones.")
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File with a prompt in each line, or a list of prompts in JSON (.json)  [default: held-out text]"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, max=86400.0, help="Time that it may take, about.")] = (
        TuneRequest.seconds
    ),
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods to compare, besides the default one  [default: all kinds, with several draft "
            "lengths]"
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated numbers of threads to compare, besides the backend's choice  [default: powers of two "
            "up to the number of cores]"
        ),
    ] = None,
    allow_lossy: Annotated[
        bool,
        typer.Option("--allow-lossy", help="Let methods and bundles of --against win that write another text."),
    ] = False,
    max_new_bytes: Annotated[
        int, typer.Option(min=16, max=4096, help="Most bytes to generate in each measurement.")
    ] = TuneRequest.max_new_bytes,
    backend: BackendOption = TuneRequest.backend,
    provider: ProviderOption = TuneRequest.provider,
    json: JsonOption = None,
) -> None:
    """Find the fastest settings for this machine, and keep them.

    Settings are methods, draft lengths, numbers of threads and bundles. All are measured in turn on the same prompts,
    greedily, and drop out when they are clearly slower. What wins becomes the default of `fastblt generate`, `serve`
    and `bench` for this bundle, on this machine.
    """
    others = tuple(map(Path, split_names(against)))
    names = None if methods is None else tuple(split_names(methods))
    check_methods(names)
    check_backend(backend)
    with usage_errors():
        request = TuneRequest(
            seconds=seconds,
            against=others,
            methods=names,
            threads=None if threads is None else tuple(numbers("threads", threads, int, most=THREADS)),
            allow_lossy=allow_lossy,
            backend=backend,
            provider=provider,
            max_new_bytes=max_new_bytes,
        )
    check_file_target(json)
    for each in (bundle, *others):
        check_bundle(each)
    texts = _mixed(read_prompts(prompts)) if prompts else heldout_prompts(_PROMPTS, _PROMPT_BYTES)
    with progress("tuning", redraw=False) as on_progress:
        report = run_tune(bundle, request, texts, on_progress)
    found = profiles(bundle, request, report, len(texts))
    if json is not None:
        write_json(json, as_json(report, found))
    console = stdout()
    print_table(console, standings_table(report))
    for line in describe(report):
        note(console, line)
    for profile in found:
        path = write_profile(profile)
        note(console, f"{summary(profile)} -> {path}")


def as_json(report: TuneReport, found: list[Profile]) -> dict[str, Any]:
    """Return the report as plain JSON types."""
    rows = [
        {
            "bundle": str(each.contender.engine.bundle),
            "method": each.contender.method,
            "threads": each.contender.engine.threads,
            "bytes_per_s": 1 / each.seconds_per_byte,
            "times_fastest": 1 / each.ratio,
            "rounds": each.rounds,
            "dropped": each.dropped,
        }
        for each in report.standings
    ]
    return {
        "seconds": report.seconds,
        "settings": report.settings,
        "new_bytes": report.new_bytes,
        "rows": rows,
        "profiles": [asdict(profile) for profile in found],
    }


def standings_table(report: TuneReport) -> Table:
    """Return a table with one row for each setting that was measured."""
    table = make_table(
        left("bundle"), left("method"), right("threads"), right("bytes/s"), right("times\nfastest"), right("rounds")
    )
    for each in report.standings:
        add_row(table, *_cells(each), bold=each.contender in report.defaults)
    return table


def _cells(standing: Standing[Setting]) -> tuple[str, ...]:
    engine = standing.contender.engine
    threads = "-" if engine.threads is None else str(engine.threads)
    rate, ratio = f"{1 / standing.seconds_per_byte:.1f}", f"{1 / standing.ratio:.3f}"
    return engine.bundle.name, standing.contender.method, threads, rate, ratio, str(standing.rounds)


def describe(report: TuneReport) -> list[str]:
    """Return lines about what was measured, and what is to be done where that was too little."""
    lines = [
        f"{report.new_bytes} new bytes after a prompt in each round, {report.rounds} rounds in {report.seconds:.0f} s; "
        "times fastest: median over the rounds of each, those with few rounds dropped out early."
    ]
    missing = report.settings - len(report.standings)
    if missing:
        lines.append(f"warning: {missing} of {report.settings} settings were not measured, expected a longer --seconds")
    elif report.rounds < FEWEST_ROUNDS:
        lines.append(f"warning: found time for {report.rounds} rounds, expected {FEWEST_ROUNDS}: a longer --seconds")
    return lines


def summary(profile: Profile) -> str:
    """Return one line about what a profile makes the default."""
    threads = "" if profile.threads is None else f", {profile.threads} thread{'s' * (profile.threads > 1)}"
    runs = "" if profile.runs is None else f" of {profile.runs.path}"
    return (
        f"{profile.bundle.path}: {profile.method}{runs}{threads}: {profile.bytes_per_s:.1f} bytes/s, "
        f"{profile.times_default:.2f} times the default"
    )


def _mixed(prompts: list[str]) -> list[bytes]:
    """Return prompts in another order, the same one at every call: whatever lies together in a file comes in turn.

    The first rounds decide who drops out, so they have to be like all of them.
    """
    return [text.encode() for text in random.Random(0).sample(prompts, len(prompts))]
