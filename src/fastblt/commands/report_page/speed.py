"""Shows how fast each method writes, against everything else that was measured, and what memory would allow."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from fastblt.commands.report_page.bars import bar
from fastblt.commands.report_page.markup import Child, element
from fastblt.commands.report_page.tables import BAR, NAME, NUMBER, Column, contender, count, section, table, times
from fastblt.commands.report_page.terms import backend_term, term
from fastblt.runtime.measure.bench.plan import AR
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport

#: How far beyond the longest bar the axis goes for the sake of a limit.
_ROOM = 3.0


def ar_rate(report: BenchReport, backend: str) -> float | None:
    """Return the bytes/s of a backend's ``ar``; None where nothing was timed."""
    rates = (row.bytes_per_s for row in report.rows if (row.backend, row.method) == (backend, AR))
    return next(rates, None) or None


def ratio(rate: float, reference: float | None) -> float | None:
    """Return how many times as fast one rate is as another; None where there is no other."""
    return None if reference is None else rate / reference


def fastest_lossless(report: BenchReport) -> BenchRow:
    """Return the fastest row of the bench's backend whose text is what it has to be; ``ar`` where there is no other."""
    rows = [row for row in report.rows if row.backend == report.plan.backend]
    right = [row for row in rows if row.lossless and row.identical_to_ar is not False]
    return max(right or rows, key=lambda row: row.bytes_per_s)


def limit_rate(row: BenchRow) -> float | None:
    """Return the bytes/s that the bandwidth of memory would allow; None where that is unknown."""
    return 1e6 / row.limit_us_per_byte if row.limit_us_per_byte else None


def color(row: BenchRow, of: str) -> str:
    """Return the class of a row's bar: ours, ours with text of its own, or somebody else's."""
    if row.backend != of:
        return "other"
    return "ours" if row.lossless else "own-text"


def speed(report: BenchReport) -> Element:
    """Return the section about speed."""
    backend = report.plan.backend
    others = report.plan.backends
    # The axis ends where a limit is not much longer than the longest bar; limits further away are arrows.
    longest = max(row.bytes_per_s for row in report.rows) or 1.0
    near = [limit for row in report.rows if (limit := limit_rate(row)) and limit <= _ROOM * longest]
    axis = max([longest, *near])
    heads = (term("ar") if each == backend else backend_term(each) for each in others)
    ratios = [Column(NUMBER, element("span", "× ", head)) for head in heads]
    columns = [
        Column(NAME, "Method"),
        Column(BAR),
        Column(NUMBER, term("speed")),
        *ratios,
        Column(NUMBER, term("limit")),
        Column(NUMBER, element("span", term("first"), ", ms")),
    ]
    references = [ar_rate(report, each) for each in others]
    rows = [_row(row, backend, references, axis) for row in report.rows]
    lead: list[Child] = ["Longer bars are faster; × is how many times as fast as ", element("code", "ar"), "."]
    if any(map(limit_rate, report.rows)):
        lead += [" The line, or an arrow where it is far away, is the ", term("limit", "memory limit"), "."]
    legend = element("p", *_legend(report), class_="legend")
    return section("speed", "Speed", lead, legend, table(columns, rows, "Bytes per second by method"))


def _row(row: BenchRow, backend: str, references: Sequence[float | None], axis: float) -> list[Child]:
    limit = limit_rate(row)
    label = f"{row.method} on {row.backend}: {row.bytes_per_s:,.0f} bytes per second"
    return [
        contender(row, of=backend),
        bar(row.bytes_per_s / axis, color(row, backend), label, limit=None if limit is None else limit / axis),
        element("strong", count(row.bytes_per_s)),
        *(times(ratio(row.bytes_per_s, reference)) for reference in references),
        count(limit),
        count(row.first_byte_ms, 1),
    ]


def _legend(report: BenchReport) -> list[Child]:
    """Return what the colors mean that are in the chart."""
    words: dict[str, list[Child]] = {
        "ours": [term("lossless"), " methods of ", backend_term(report.plan.backend)],
        "own-text": ["methods whose text is their own"],
        "other": ["what it is compared with"],
    }
    used = {color(row, report.plan.backend) for row in report.rows}
    return [
        element("span", element("i", class_=f"swatch {kind}"), *each) for kind, each in words.items() if kind in used
    ]
