"""``fastblt bench --url``: measures a running server, prints tables and writes a JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastblt.commands.bench_url_tables import describe_server, server_tables
from fastblt.commands.checks import check_file_target
from fastblt.commands.errors import UsageError
from fastblt.commands.output import note, print_table, progress, stdout
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest
from fastblt.runtime.measure.server_bench.run import run_server_bench

#: Parameters of the command that only a server has, and those that only a bundle has.
OF_SERVERS = ("clients", "duration", "requests", "timeout", "stream", "chat", "model", "api_key", "prompt_file")
OF_BUNDLES = ("streams", "repeats", "replay", "html", "backend", "provider", "threads", "profile", "max_bytes")


def check_target(context: Any, bundle: Path | None, url: str | None) -> None:
    """Check that there is a bundle or a URL, and that the options are of that one.

    Args:
        context: of the command; knows which options were given.
        bundle: argument of the command.
        url: option of the command.

    Raises:
        UsageError: both, or neither, or an option of the other.
    """
    if bundle is not None and url is not None:
        raise UsageError("found a bundle and --url, expected one of them")
    if bundle is None and url is None:
        raise UsageError("found neither a bundle nor --url, expected one of them")
    others, needed = (OF_SERVERS, "--url") if url is None else (OF_BUNDLES, "a bundle")
    for name in others:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')}: found it without {needed}, which it is for")


def as_texts(prompts: Sequence[bytes]) -> list[str]:
    """Return prompts as text; one that ends inside a character ends before it."""
    return [prompt.decode(errors="ignore") for prompt in prompts]


def bench_url(request: ServerBenchRequest, prompts: Sequence[str], json: Path | None, *, wide: bool) -> None:
    """Measure a server, and report it."""
    check_file_target(json)
    with progress("measuring", redraw=False) as on_progress:
        report = run_server_bench(request, prompts, on_progress)
    if json is not None:
        write_json(json, report.to_dict())
    console = stdout()
    for table in server_tables(report, wide=wide):
        print_table(console, table)
        console.print()
    for line in describe_server(report):
        note(console, line)
