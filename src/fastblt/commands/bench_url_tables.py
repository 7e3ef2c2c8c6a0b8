"""The tables of ``fastblt bench --url``, and the lines below them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from fastblt.commands.fields import Field, fields_table
from fastblt.commands.output import number, percent
from fastblt.runtime.measure.server_bench.rows import ServerRow
from fastblt.runtime.measure.server_bench.run import ServerBenchReport

_FIELDS: tuple[Field[ServerRow], ...] = (
    Field("clients", lambda row: str(row.clients)),
    Field("requests", lambda row: str(row.requests)),
    Field("errors", lambda row: str(sum(row.errors.values()))),
    Field("first\nbyte\nms", lambda row: number(row.first_byte_ms_p50, ".0f")),
    Field("\n\n95 %", lambda row: number(row.first_byte_ms_p95, ".0f")),
    Field("between\nchunks\nms", lambda row: number(row.between_chunks_ms_p50, ".1f")),
    Field("\n\n95 %", lambda row: number(row.between_chunks_ms_p95, ".1f"), wide=True),
    Field("bytes/s\nper\nclient", lambda row: number(row.bytes_per_s_per_client_p50, ".1f")),
    Field("bytes/s\nin all", lambda row: f"{row.bytes_per_s:.1f}"),
    Field("drafts\nkept", lambda row: percent(row.acceptance)),
    Field("tokens/s\nin all", lambda row: number(row.tokens_per_s, ".1f"), wide=True),
    Field("prompt\ncached", lambda row: percent(_cached(row), 0), wide=True),
    Field("whole\nanswer\ns", lambda row: number(row.seconds_p50, ".2f"), wide=True),
    Field("\n\n95 %", lambda row: number(row.seconds_p95, ".2f"), wide=True),
)


def server_tables(report: ServerBenchReport, *, wide: bool = False) -> Iterator[Table]:
    """Return the rows as people read them: one table for each server and each method that was asked for."""
    for endpoint, method in dict.fromkeys((row.endpoint, row.method) for row in report.rows):
        rows = [row for row in report.rows if (row.endpoint, row.method) == (endpoint, method)]
        server = f"server {endpoint}" if len(report.models) > 1 else "server"
        title = f"{server}, method {method}" if method else server
        yield fields_table(title, rows, {}, _FIELDS, wide=wide)


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
