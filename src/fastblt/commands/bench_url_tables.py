"""The tables of ``fastblt bench --url``, and the lines below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from fastblt.commands.output import add_row, make_table, number, percent, right
from fastblt.runtime.measure.server_bench.rows import ServerRow
from fastblt.runtime.measure.server_bench.run import ServerBenchReport


@dataclass(frozen=True)
class _Column:
    """Describes one column of a table."""

    heading: str
    cell: Callable[[ServerRow], str]
    wide: bool = False
    """Whether only ``--wide`` shows it."""


_COLUMNS = (
    _Column("clients", lambda row: str(row.clients)),
    _Column("requests", lambda row: str(row.requests)),
    _Column("errors", lambda row: str(sum(row.errors.values()))),
    _Column("first\nbyte\nms", lambda row: number(row.first_byte_ms_p50, ".0f")),
    _Column("\n\n95 %", lambda row: number(row.first_byte_ms_p95, ".0f")),
    _Column("between\nchunks\nms", lambda row: number(row.between_chunks_ms_p50, ".1f")),
    _Column("\n\n95 %", lambda row: number(row.between_chunks_ms_p95, ".1f"), wide=True),
    _Column("bytes/s\nper\nclient", lambda row: number(row.bytes_per_s_per_client_p50, ".1f")),
    _Column("bytes/s\nin all", lambda row: f"{row.bytes_per_s:.1f}"),
    _Column("drafts\nkept", lambda row: percent(row.acceptance)),
    _Column("tokens/s\nin all", lambda row: number(row.tokens_per_s, ".1f"), wide=True),
    _Column("prompt\ncached", lambda row: percent(_cached(row), 0), wide=True),
    _Column("whole\nanswer\ns", lambda row: number(row.seconds_p50, ".2f"), wide=True),
    _Column("\n\n95 %", lambda row: number(row.seconds_p95, ".2f"), wide=True),
)


def server_tables(report: ServerBenchReport, *, wide: bool = False) -> Iterator[Table]:
    """Return the rows as people read them: one table for each server and each method that was asked for."""
    for endpoint, method in dict.fromkeys((row.endpoint, row.method) for row in report.rows):
        rows = [row for row in report.rows if (row.endpoint, row.method) == (endpoint, method)]
        server = f"server {endpoint}" if len(report.models) > 1 else "server"
        yield _table(f"{server}, method {method}" if method else server, rows, wide=wide)


def _table(title: str, rows: Sequence[ServerRow], *, wide: bool) -> Table:
    """Return a table; a column whose cells are all empty is left out, unless all columns are wanted."""
    columns = [column for column in _COLUMNS if wide or not column.wide]
    shown = [column for column in columns if wide or any(column.cell(row) != "-" for row in rows)]
    table = make_table(*(right(column.heading) for column in shown), title=title)
    for row in rows:
        add_row(table, *(column.cell(row) for column in shown))
    return table


def _cached(row: ServerRow) -> float | None:
    return row.cached_tokens / row.prompt_tokens if row.cached_tokens is not None and row.prompt_tokens else None


def describe_server(report: ServerBenchReport) -> Iterator[str]:
    """Return lines about what was measured and what the columns mean, and about errors by their kinds."""
    for row in report.rows:
        if row.errors:
            method = f" with {row.method}" if row.method else ""
            kinds = ", ".join(f"{count} times {kind}" for kind, count in sorted(row.errors.items()))
            where = f" at {row.endpoint}" if len(report.models) > 1 else ""
            yield f"errors of {row.clients} clients{method}{where}: {kinds}."
    request = report.request
    size = round(report.prompt_bytes / report.prompts)
    amount = f"{request.duration:g} s" if request.requests is None else f"{request.requests} requests"
    places = ", ".join(f"{model} at {endpoint}" for endpoint, model in report.models.items())
    yield (
        f"{places}, asked from {report.device['cpu']}, "
        f"{report.device['usable_cores']} cores: {amount} a row, {report.prompts} prompts of about {size} bytes, "
        f"max_tokens {request.max_new_bytes}, greedy, {'streamed' if request.stream else 'not streamed'}."
    )
    yield (
        "first byte: from sending a request to its first text. per client: bytes of an answer by its whole time, "
        "median. Columns without a share are medians, 95 %: the 95th percentile. Text is counted in bytes of UTF-8."
    )
