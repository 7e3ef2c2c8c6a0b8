"""``fastblt bench``: measures decoding methods or a running server, prints tables and writes a JSON file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastblt.calibration.heldout import CORPORA, EDIT
from fastblt.commands.bench_checks import check_bench
from fastblt.commands.bench_html import SampleRequest, write_page
from fastblt.commands.bench_streams import bench_streams, parse_streams
from fastblt.commands.bench_tables import bench_tables, describe_measurement
from fastblt.commands.bench_url import as_texts, bench_url, check_target
from fastblt.commands.checks import check_bundle, check_file_target
from fastblt.commands.errors import UsageError, usage_errors
from fastblt.commands.options import (
    BackendOption,
    JsonOption,
    MaxBytesOption,
    ProviderOption,
    ThreadsOption,
    WideOption,
    joined,
    numbers,
    split_names,
)
from fastblt.commands.output import note, print_table, progress, stderr, stdout
from fastblt.commands.prompts import heldout_prompts, read_prompts
from fastblt.commands.tuned import ProfileOption, usable_profile
from fastblt.runtime.measure.bench.run import BenchRequest, run_bench
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest
from fastblt.runtime.methods.registry import bench_defaults

#: What the figures of a replay are, above its tables.
_REPLAY_NOTE = "real graphs and control flow at the given rates; the text is not the model's: nothing about quality."

#: Number of held-out prompts: few for methods, which are all measured after the same ones; for a server as many as
#: ship, so that what it remembers of earlier requests seldom helps.
_PROMPTS, _SERVER_PROMPTS = 8, 96


def command(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle: a folder that `fastblt export` wrote.", show_default=False)
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Measure a running server instead: the address of `fastblt serve`, or of any other that has the "
            "interface of OpenAI; without a path, /v1 is added."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            help="Comma-separated methods; ar is always measured  [default: {bench_methods}; with --url the server's "
            "own, which is all that servers other than fastblt have]",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="Comma-separated opponents to measure as well: BACKEND (its ar), BACKEND/METHOD, or transformers "
            "(its generate without a cache; BLT models only). With --url: URLs of further servers; the key goes to "
            "them, too."
        ),
    ] = "",
    prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Number of held-out prompts  [default: {_PROMPTS}; with --streams: one for each text; with --url: "
            f"{_SERVER_PROMPTS}]",
        ),
    ] = None,
    prompt_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each prompt.")] = 64,
    corpora: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated corpora to take prompts from, one after the other: {', '.join(CORPORA)}; or {EDIT}, "
            "whole prompts with text to write again, changed  [default: the first four in turn]"
        ),
    ] = "",
    max_new_bytes: Annotated[
        int, typer.Option(min=2, help="Bytes to generate after each prompt.")
    ] = BenchRequest.max_new_bytes,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each prompt.")] = BenchRequest.repeats,
    streams: Annotated[
        str | None,
        typer.Option(
            help="Measure texts that grow at the same time instead: comma-separated numbers of texts, ascending, such "
            "as 1,2,4,8,16. Each is measured with calls of the model shared, where the backend can, and in turn."
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            help="Measure cost without trained weights: run the real graphs, but accept drafts, denoise blocks and end "
            "patches at given rates. Comma-separated: acceptance=0.91, steps=2.92, patch=2.05; METHOD/acceptance=0.77 "
            "or METHOD/steps=2.92 for one method; or paper, the 1B figures of arXiv 2605.08044."
        ),
    ] = None,
    clients: Annotated[
        str, typer.Option(help="With --url: comma-separated numbers of clients, measured one after the other.")
    ] = joined(ServerBenchRequest.clients),
    duration: Annotated[
        float | None, typer.Option(help="With --url: seconds in which requests begin, for each row  [default: 10]")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="With --url: requests of each row, instead of a duration.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="With --url: let answers arrive piece by piece.")
    ] = ServerBenchRequest.stream,
    chat: Annotated[
        bool, typer.Option("--chat", help="With --url: send prompts as messages of a chat.")
    ] = ServerBenchRequest.chat,
    model: Annotated[
        str | None, typer.Option(help="With --url: name of the model  [default: the first that the server lists]")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="With --url: key that the server wants; never printed.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="With --url: file with a prompt in each line, or a list of prompts in JSON (.json), instead of "
            "held-out text."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="With --url: seconds without a byte after which a request counts as failed.")
    ] = ServerBenchRequest.timeout,
    wide: WideOption = False,
    json: JsonOption = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page about the results, one HTML file: charts, and the same text by each method.",
            show_default=False,
        ),
    ] = None,
    backend: BackendOption = BenchRequest.backend,
    provider: ProviderOption = BenchRequest.provider,
    threads: ThreadsOption = None,
    profile: ProfileOption = True,
    max_bytes: MaxBytesOption = None,
) -> None:
    """Measure the speed of decoding methods, or of a server.

    All methods run in turn in one process, greedily, on the same held-out prompts, and their output is compared. A
    --replay measures speed and cost only. With --streams, many texts grow at the same time. With --url, clients send
    requests to a server and wait for the answers; its methods are measured one after the other.
    """
    check_target(context, bundle, url)
    sources = split_names(corpora)
    if bundle is None:
        with usage_errors():
            asked = ServerBenchRequest(
                url=url or "",
                against=tuple(split_names(against)),
                clients=tuple(numbers("clients", clients, int)),
                duration=ServerBenchRequest.duration if duration is None and requests is None else duration,
                requests=requests,
                max_new_bytes=max_new_bytes,
                methods=tuple(split_names(methods or "")),
                model=model,
                api_key=api_key,
                stream=stream,
                chat=chat,
                timeout=timeout,
            )
            heldout = heldout_prompts(prompts or _SERVER_PROMPTS, prompt_bytes, sources)
        bench_url(asked, read_prompts(prompt_file) if prompt_file else as_texts(heldout), json, wide=wide)
        return
    with usage_errors():
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
        check_bench(request)
        counts = None if streams is None else parse_streams(streams)
        if html is not None and counts is not None:
            raise UsageError(
                "--html: found it with --streams, expected one of them: the page is about one text at a time"
            )
        texts = heldout_prompts(prompts or max(counts or (_PROMPTS,)), prompt_bytes, sources)
    check_file_target(json)
    check_file_target(html)
    check_bundle(bundle, backend=backend)
    if profile:
        request = _with_profile(bundle, request, every_method=methods is not None)
    if counts is not None:
        _note_replay(replay)
        bench_streams(bundle, request, counts, texts, json, wide=wide)
        return
    with progress("measuring", redraw=False) as on_progress:
        report = run_bench(bundle, request, texts, on_progress)
    if json is not None:
        write_json(json, report.to_dict())
    _note_replay(replay)
    console = stdout()
    for table in bench_tables(report, wide=wide):
        print_table(console, table)
        console.print()
    for line in describe_measurement(report, sources, wide=wide):
        note(console, line)
    if html is not None:
        write_page(html, bundle, report, SampleRequest(backend, provider, request.threads_of(backend)))


def _with_profile(bundle: Path, request: BenchRequest, *, every_method: bool) -> BenchRequest:
    """Return a request with what `fastblt tune` found for a bundle; a note says what that is.

    Args:
        bundle: that is measured, and no other one, even if a profile names one.
        request: from the options.
        every_method: whether it has every method that is to be measured; otherwise the profile's is measured, too.
    """
    found = usable_profile(bundle, request.backend, request.provider)
    if found is None or found.runs is not None:
        return request
    methods = request.methods if every_method else tuple(dict.fromkeys((*request.methods, found.method)))
    request = replace(request, methods=methods, tuned_threads=found.threads)
    threads = request.threads_of(request.backend)
    threads_text = "" if threads is None else f", threads {threads}"
    note(stderr(), f"tuned for this machine: {found.method}{threads_text}; --no-profile leaves that out")
    return request


def _note_replay(replay: str | None) -> None:
    """Print what the figures of a replay are."""
    if replay is not None:
        note(stdout(), f"REPLAY ({replay}): {_REPLAY_NOTE}")
        stdout().print()
