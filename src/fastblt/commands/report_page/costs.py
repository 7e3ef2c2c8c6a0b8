"""Shows where the time goes, the paper's estimate against the clock, and what becomes of drafts."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element

from fastblt.commands.report_page.bars import bar, stacked_bar
from fastblt.commands.report_page.markup import Child, element
from fastblt.commands.report_page.speed import color
from fastblt.commands.report_page.tables import BAR, NAME, NUMBER, Column, contender, count, section, share, table
from fastblt.commands.report_page.terms import term
from fastblt.runtime.measure.bench.plan import AR
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport

#: The parts of `BenchRow.us_per_byte`, and the keys of their terms.
_PARTS = {
    "patcher": "patcher",
    "encoder": "encoder",
    "global": "global",
    "decoder": "decoder",
    "draft": "draft_decoder",
    "host": "host",
}


def time_by_part(report: BenchReport) -> Element:
    """Return the section about the parts of the model."""
    used = [part for part in _PARTS if any(row.us_per_byte.get(part) for row in report.rows)]
    columns = [
        Column(NAME, "Method"),
        Column(BAR),
        *(Column(NUMBER, term(_PARTS[part]), swatch=part) for part in used),
        Column(NUMBER, "Together"),
    ]
    longest = max(sum(row.us_per_byte.values()) for row in report.rows) or 1.0
    rows = (_time_row(row, report.plan.backend, used, longest) for row in report.rows)
    lead = ["Microseconds per new byte, reading the prompt included. Shorter bars are faster."]
    return section("time", "Where the time goes", lead, table(columns, rows, "Microseconds per byte by part"))


def _time_row(row: BenchRow, backend: str, used: list[str], longest: float) -> list[Child]:
    parts = {part: max(0.0, row.us_per_byte.get(part, 0.0)) for part in used}
    whole = sum(parts.values())
    words = {part: f"{part_name(part)}: {size:,.0f} µs, {share(size / (whole or 1.0))}" for part, size in parts.items()}
    label = f"{row.method} on {row.backend}: " + "; ".join(words.values())
    return [
        contender(row, of=backend),
        stacked_bar(parts, longest, label, words),
        *(count(size) for size in parts.values()),
        element("strong", count(whole)),
    ]


def part_name(part: str) -> str:
    """Return what a part is called in a sentence."""
    return {"host": "Python", "draft": "draft decoder"}.get(part, part)


def estimate_and_clock(report: BenchReport) -> Element | None:
    """Return the section that compares two ways to count cost; None where there is only ``ar``."""
    backend = report.plan.backend
    rows = [row for row in _methods(report) if row.estimated_saving is not None and row.measured_saving is not None]
    if not rows:
        return None
    longest = max([1.0, *(1 - min(row.estimated_saving or 0.0, row.measured_saving or 0.0) for row in rows)])
    columns = [
        Column(NAME, "Method"),
        Column(BAR),
        Column(NUMBER, term("estimate"), swatch="estimate"),
        Column(NUMBER, "By the clock", swatch="ours"),
        *(Column(NUMBER, element("span", name, " calls")) for name in ("Decoder", "Encoder", "Global")),
    ]
    table_rows = (_cost_row(row, backend, longest) for row in rows)
    lead: list[Child] = ["What each byte costs, as a part of what it costs with ", element("code", term("ar")), ". "]
    lead += ["The line is ", element("code", "ar"), " itself; bars beyond it cost more. On the right: "]
    lead += [term("calls", "calls per byte"), "."]
    return section(
        "estimate",
        "The paper’s estimate and the clock",
        lead,
        table(columns, table_rows, "Cost against one byte at a time"),
    )


def _cost_row(row: BenchRow, backend: str, longest: float) -> list[Child]:
    estimated, measured = 1 - (row.estimated_saving or 0.0), 1 - (row.measured_saving or 0.0)
    bars = element(
        "div",
        bar(estimated / longest, "estimate", f"{row.method}: estimated {share(estimated)} of ar", limit=1 / longest),
        bar(measured / longest, "ours", f"{row.method}: measured {share(measured)} of ar", limit=1 / longest),
        class_="pair",
    )
    calls = (row.nfe_decoder_per_512, row.nfe_encoder_per_512, row.nfe_global_per_512)
    return [
        contender(row, of=backend),
        bars,
        share(estimated),
        element("strong", share(measured)),
        *(count(each / 512, 2) for each in calls),
    ]


def drafts(report: BenchReport) -> Element | None:
    """Return the section about drafts; None where nothing was drafted."""
    rows = [row for row in report.rows if row.drafted and row.acceptance is not None]
    if not rows:
        return None
    columns = [
        Column(NAME, "Method"),
        Column(BAR),
        Column(NUMBER, term("acceptance")),
        Column(NUMBER, "Drafted bytes"),
        Column(NUMBER, "Kept bytes"),
        Column(NUMBER, element("span", "Bytes per ", term("round", "round"))),
    ]
    lead: list[Child] = ["A ", term("draft", "draft"), " that is kept saves calls of the large transformer; "]
    lead += ["one that is thrown away was work for nothing. The text is the same either way."]
    table_rows = (_draft_row(row, report.plan.backend) for row in rows)
    return section("drafts", "Drafts", lead, table(columns, table_rows, "Drafts kept by method"))


def _draft_row(row: BenchRow, backend: str) -> list[Child]:
    kept = row.acceptance or 0.0
    return [
        contender(row, of=backend),
        bar(kept, color(row, backend), f"{row.method}: {share(kept)} of drafts kept"),
        element("strong", share(kept)),
        count(row.drafted),
        count(row.accepted),
        count(row.bytes / row.rounds if row.rounds else None, 2),
    ]


def _methods(report: BenchReport) -> Iterable[BenchRow]:
    """Return the rows of the bench's backend other than ``ar``."""
    return (row for row in report.rows if row.backend == report.plan.backend and row.method != AR)
