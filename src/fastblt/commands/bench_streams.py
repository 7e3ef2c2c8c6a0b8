"""Measures texts that grow at the same time for ``fastblt bench --streams``, and prints what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from fastblt.commands.fields import Field, fields_table
from fastblt.commands.options import split_names
from fastblt.commands.output import note, number, percent, print_table, progress, stdout
from fastblt.runtime.measure.bench.run import BenchRequest
from fastblt.runtime.measure.bench.streams.rows import Figures, StreamsRow
from fastblt.runtime.measure.bench.streams.run import StreamsReport, check_streams, run_streams_bench
from fastblt.runtime.measure.report import write_json

_NAMES: dict[str, Callable[[StreamsRow], str]] = {
    "backend": lambda row: row.backend,
    "method": lambda row: row.method,
    "texts": lambda row: str(row.streams),
}
_SPEED: tuple[Field[StreamsRow], ...] = (
    Field("bytes/s", lambda row: f"{row.together.bytes_per_s:.1f}"),
    Field("times\nin turn", lambda row: number(row.times_in_turn, ".2f")),
    Field("ms/byte\nmedian", lambda row: f"{row.together.ms_per_byte_p50:.2f}"),
    Field("ms/byte\n95 %", lambda row: f"{row.together.ms_per_byte_p95:.2f}"),
    Field("times\npeer", lambda row: number(row.times_peer, ".2f"), wide=True),
    Field("ms to\nfirst byte", lambda row: f"{row.together.first_byte_ms:.0f}", wide=True),
    Field("in turn:\nbytes/s", lambda row: _in_turn(row, lambda figures: figures.bytes_per_s, ".1f"), wide=True),
    Field("\nmedian", lambda row: _in_turn(row, lambda figures: figures.ms_per_byte_p50, ".2f"), wide=True),
    Field("\n95 %", lambda row: _in_turn(row, lambda figures: figures.ms_per_byte_p95, ".2f"), wide=True),
    Field("drafts\nkept", lambda row: percent(row.acceptance), wide=True),
    Field("same\ntext", lambda row: _same_text(row), wide=True),
)
_COST: tuple[Field[StreamsRow], ...] = (
    Field("calls", lambda row: f"{row.together.calls_per_byte:.3f}"),
    Field("calls\nin turn", lambda row: _in_turn(row, lambda figures: figures.calls_per_byte, ".3f"), wide=True),
    Field("MB read", lambda row: f"{row.together.moved_bytes_per_byte / 1e6:.4g}"),
    Field(
        "MB read\nin turn",
        lambda row: _in_turn(row, lambda figures: figures.moved_bytes_per_byte / 1e6, ".4g"),
        wide=True,
    ),
    Field("MB\nexpected", lambda row: number(_megabytes(row.predicted_moved_bytes_per_byte), ".4g")),
    Field("read /\nexpected", lambda row: number(row.times_predicted, ".2f")),
)


def parse_streams(text: str) -> tuple[int, ...]:
    """Return the numbers of texts that a user asked for.

    Raises:
        ValueError: they are not ascending whole numbers, or one is too large.
    """
    try:
        return check_streams([int(name) for name in split_names(text)])
    except ValueError as error:
        message = str(error)
        if not message.startswith("streams"):
            message = f"streams: found {text!r}, expected ascending whole numbers, comma-separated"
        raise ValueError(f"--{message}") from None


def bench_streams(
    bundle: Path,
    request: BenchRequest,
    streams: Sequence[int],
    prompts: Sequence[bytes],
    json: Path | None,
    *,
    wide: bool,
) -> None:
    """Measure, write the JSON file, and print tables."""
    with progress("measuring", redraw=False) as on_progress:
        report = run_streams_bench(bundle, request, streams, prompts, on_progress)
    if json is not None:
        write_json(json, report.to_dict())
    console = stdout()
    for table in streams_tables(report.rows, wide=wide):
        print_table(console, table)
        console.print()
    for line in describe_streams(report, prompts):
        note(console, line)


def streams_tables(rows: Sequence[StreamsRow], *, wide: bool = False) -> Iterator[Table]:
    """Return the rows as people read them: speed and cost."""
    yield fields_table("speed of texts that grow at the same time", rows, _NAMES, _SPEED, wide=wide)
    yield fields_table("cost: calls of graphs and MB read, per byte of any text", rows, _NAMES, _COST, wide=wide)


def describe_streams(report: StreamsReport, prompts: Sequence[bytes]) -> Iterator[str]:
    """Return lines about what was measured and what the columns mean."""
    device, request = report.device, report.request
    threads = "chosen by the backend" if device["threads"] is None else str(device["threads"])
    repeats = f", {request.repeats} times" if request.repeats > 1 else ""
    yield (
        f"{report.model} ({report.dtype}) on {report.rows[0].device}: {device['cpu']}, {device['usable_cores']} cores, "
        f"threads {threads}; held-out prompts of {len(prompts[0])} bytes, {request.max_new_bytes} new bytes for each "
        f"text{repeats}, greedy."
    )
    for backend, reason in {row.backend: row.alone_because for row in report.rows if row.alone_because}.items():
        yield f"{backend}: texts share no calls ({reason}); they grew in turn, a round of each."
    different = [f"{row.method} ({row.streams})" for row in report.rows if row.as_in_turn is False]
    if different:
        yield f"TEXTS DIFFER between shared calls and calls in turn: {', '.join(different)}; see fastblt audit."
    elif any(row.as_in_turn for row in report.rows):
        yield "Texts that share calls are those in turn, byte for byte."
    yield (
        "bytes/s: of all texts together, from when each had its first byte to before the round in which one ended. "
        "ms/byte: as the reader of one text sees it. times in turn: against the same texts, a round of each in turn, "
        "without sharing calls. MB expected: weights once a call, as many calls a round as the text makes that needs "
        "most, if texts are independent of each other; each text's own caches."
    )


def _in_turn(row: StreamsRow, value: Callable[[Figures], float], form: str) -> str:
    return number(None if row.in_turn is None else value(row.in_turn), form)


def _same_text(row: StreamsRow) -> str:
    """Return whether texts that share calls are those in turn; ``-``: nothing to compare."""
    if row.as_in_turn is None:
        return "-"
    return "yes" if row.as_in_turn else "NO"


def _megabytes(count: float | None) -> float | None:
    return None if count is None else count / 1e6
