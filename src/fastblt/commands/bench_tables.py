"""The tables of ``fastblt bench``, and the lines below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from fastblt.commands.output import add_row, left, make_table, number, percent, right
from fastblt.runtime.measure.bench.plan import PYTORCH
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport


@dataclass(frozen=True)
class _Column:
    """Describes one column of a table."""

    heading: str
    cell: Callable[[BenchRow], str]
    wide: bool = False
    """Whether only ``--wide`` shows it."""


_SPEED = (
    _Column("bytes/s", lambda row: f"{row.bytes_per_s:.1f}"),
    _Column("times\nar", lambda row: number(row.ratio_to_ar, ".2f")),
    _Column("times\nPyTorch ar", lambda row: number(row.ratio_to_pytorch_ar, ".2f")),
    _Column("drafts\nkept", lambda row: percent(row.acceptance)),
    _Column("right\ntext", lambda row: _right_text(row)),
    _Column("times\neager ar", lambda row: number(row.ratio_to_eager_ar, ".2f"), wide=True),
    _Column("ms/byte\nmedian", lambda row: f"{row.ms_per_byte_p50:.3f}", wide=True),
    _Column("ms/byte\n95 %", lambda row: f"{row.ms_per_byte_p95:.3f}", wide=True),
    _Column("ms to\nfirst byte", lambda row: f"{row.first_byte_ms:.1f}", wide=True),
    _Column("as ar\nup to", lambda row: percent(row.agreement_with_ar), wide=True),
    _Column("time outside\nthe model", lambda row: percent(_share_of_host(row)), wide=True),
)
_COST = (
    _Column("decoder\ncalls", lambda row: f"{row.nfe_decoder_per_512 / 512:.2f}"),
    _Column("encoder\ncalls", lambda row: f"{row.nfe_encoder_per_512 / 512:.2f}"),
    _Column("global\ncalls", lambda row: f"{row.nfe_global_per_512 / 512:.2f}"),
    _Column("traffic\nsaved", lambda row: percent(row.estimated_saving, 0)),
    _Column("time\nsaved", lambda row: percent(row.measured_saving, 0)),
    _Column("traffic, GB\nper 512 bytes", lambda row: f"{row.estimated_gb_per_512:.3g}", wide=True),
    _Column("MB read\nper byte", lambda row: f"{1e3 * row.moved_gb / max(1, row.bytes):.3g}", wide=True),
    _Column("µs per\nbyte", lambda row: f"{sum(row.us_per_byte.values()):.0f}", wide=True),
    _Column("µs to read\nmemory", lambda row: number(row.limit_us_per_byte, ".0f"), wide=True),
    _Column("times\nthat", lambda row: number(row.times_limit, ".2f"), wide=True),
)
_REPLAY = (
    _Column("kept:\nwanted", lambda row: percent(_rates(row).get("wanted_acceptance"), 2)),
    _Column("\nreached", lambda row: percent(_rates(row).get("acceptance"), 2)),
    _Column("steps:\nwanted", lambda row: number(_rates(row).get("wanted_steps"), ".2f")),
    _Column("\nreached", lambda row: number(_rates(row).get("steps"), ".2f")),
    _Column("patch:\nwanted", lambda row: number(_rates(row).get("wanted_patch"), ".2f")),
    _Column("\nreached", lambda row: number(_rates(row).get("patch"), ".2f")),
)


def bench_tables(report: BenchReport, *, wide: bool = False) -> Iterator[Table]:
    """Return the rows as people read them: speed, cost and, of a replay, the rates that it reached."""
    rows = report.rows
    yield _table("speed", rows, _SPEED, wide)
    yield _table("cost: model calls per byte; weight traffic and time saved", rows, _COST, wide)
    if any(row.replay for row in rows):
        yield _table("replay: drafts kept, steps per block, bytes per patch", rows, _REPLAY, wide)


def _table(title: str, rows: Sequence[BenchRow], columns: Sequence[_Column], wide: bool) -> Table:
    """Return a table; a column whose cells are all empty is left out, unless all columns are wanted."""
    cells = {column: [column.cell(row) for row in rows] for column in columns if wide or not column.wide}
    shown = {column: texts for column, texts in cells.items() if wide or set(texts) != {"-"}}
    table = make_table(left("backend"), left("method"), *(right(column.heading) for column in shown), title=title)
    for index, row in enumerate(rows):
        add_row(table, row.backend, row.method, *(texts[index] for texts in shown.values()))
    return table


def _right_text(row: BenchRow) -> str:
    """Return whether the text is what it has to be; ``-``: the method, or the replay, promises nothing."""
    if row.identical_to_ar is None or not row.lossless:
        return "-"
    return "yes" if row.identical_to_ar else "NO"


def _share_of_host(row: BenchRow) -> float:
    return row.us_per_byte["host"] / (sum(row.us_per_byte.values()) or 1.0)


def _rates(row: BenchRow) -> dict[str, float | None]:
    return row.replay or {}


def describe_measurement(report: BenchReport, corpora: Sequence[str] = (), *, wide: bool = False) -> Iterator[str]:
    """Return lines about what was measured and what the columns mean.

    Args:
        report: of the measurement.
        corpora: where the prompts are from, if the user chose.
        wide: whether all columns are shown.
    """
    row, plan, device = report.rows[0], report.plan, report.device
    threads = "chosen by the backend" if device["threads"] is None else str(device["threads"])
    places = ", ".join(dict.fromkeys(each.device for each in report.rows))
    source = f" ({', then '.join(corpora)})" if corpora else ""
    repeats = f", {row.repeats} times" if row.repeats > 1 else ""
    yield (
        f"{report.model} ({report.dtype}) on {places}: {device['cpu']}, {device['usable_cores']} cores, threads "
        f"{threads}; held-out prompts{source}: {row.prompts} of {row.prompt_bytes // row.prompts} bytes{repeats}; "
        f"{row.bytes} new bytes per row, greedy."
    )
    yield (
        f"bytes/s leaves out the prompt. times ar: against ar of {plan.backend}. traffic saved: weights read, by the "
        f"formula of arXiv 2605.08044; time saved: by the clock; both against ar of the same backend."
    )
    if row.pytorch_baseline:
        yield f"times PyTorch ar: against ar of {_baseline(report, row.pytorch_baseline)}."
    if row.replay:
        yield "Texts are not compared in a replay."
    else:
        other = f"; ar of {plan.backend} those of {plan.baseline}" if plan.baseline else ""
        yield f"right text: lossless methods have to write the same bytes as their backend's ar{other}."
    if wide and row.limit_gb_per_s:
        yield (
            f"µs to read memory: the time that the MB read take at {row.limit_gb_per_s:.1f} GB/s, the speed of main "
            f"memory measured here with all threads ({device['memory_gb_per_s']:.1f} GB/s with one)."
        )


def _baseline(report: BenchReport, fastest: str) -> str:
    """Return the PyTorch backend that ratios are against, and how it was chosen."""
    others = [name for name in PYTORCH if name != fastest]
    measured = [name for name in others if name in report.plan.backends]
    if measured:
        return f"{fastest}, which is faster than {', '.join(measured)} here"
    return f"{fastest} ({', '.join(others)} was not measured, see --against)"
