"""The tables of ``fastblt bench``, and the lines below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from fastblt.commands.fields import Field, fields_table
from fastblt.commands.output import number, percent
from fastblt.runtime.measure.bench.plan import PYTORCH
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport

_NAMES: dict[str, Callable[[BenchRow], str]] = {"backend": lambda row: row.backend, "method": lambda row: row.method}
_SPEED: tuple[Field[BenchRow], ...] = (
    Field("bytes/s", lambda row: f"{row.bytes_per_s:.1f}"),
    Field("times\nar", lambda row: number(row.ratio_to_ar, ".2f")),
    Field("times\nPyTorch ar", lambda row: number(row.ratio_to_pytorch_ar, ".2f")),
    Field("drafts\nkept", lambda row: percent(row.acceptance)),
    Field("right\ntext", lambda row: _right_text(row)),
    Field("times\neager ar", lambda row: number(row.ratio_to_eager_ar, ".2f"), wide=True),
    Field("ms/byte\nmedian", lambda row: f"{row.ms_per_byte_p50:.3f}", wide=True),
    Field("ms/byte\n95 %", lambda row: f"{row.ms_per_byte_p95:.3f}", wide=True),
    Field("ms to\nfirst byte", lambda row: f"{row.first_byte_ms:.1f}", wide=True),
    Field("as ar\nup to", lambda row: percent(row.agreement_with_ar), wide=True),
    Field("time outside\nthe model", lambda row: percent(_share_of_host(row)), wide=True),
)
_COST: tuple[Field[BenchRow], ...] = (
    Field("decoder\ncalls", lambda row: f"{row.nfe_decoder_per_512 / 512:.2f}"),
    Field("encoder\ncalls", lambda row: f"{row.nfe_encoder_per_512 / 512:.2f}"),
    Field("global\ncalls", lambda row: f"{row.nfe_global_per_512 / 512:.2f}"),
    Field("traffic\nsaved", lambda row: percent(row.estimated_saving, 0)),
    Field("time\nsaved", lambda row: percent(row.measured_saving, 0)),
    Field("traffic, GB\nper 512 bytes", lambda row: f"{row.estimated_gb_per_512:.3g}", wide=True),
    Field("MB read\nper byte", lambda row: f"{1e3 * row.moved_gb / max(1, row.bytes):.3g}", wide=True),
    Field("µs per\nbyte", lambda row: f"{sum(row.us_per_byte.values()):.0f}", wide=True),
    Field("µs to read\nmemory", lambda row: number(row.limit_us_per_byte, ".0f"), wide=True),
    Field("times\nthat", lambda row: number(row.times_limit, ".2f"), wide=True),
)
_REPLAY: tuple[Field[BenchRow], ...] = (
    Field("kept:\nwanted", lambda row: percent(_rates(row).get("wanted_acceptance"), 2)),
    Field("\nreached", lambda row: percent(_rates(row).get("acceptance"), 2)),
    Field("steps:\nwanted", lambda row: number(_rates(row).get("wanted_steps"), ".2f")),
    Field("\nreached", lambda row: number(_rates(row).get("steps"), ".2f")),
    Field("patch:\nwanted", lambda row: number(_rates(row).get("wanted_patch"), ".2f")),
    Field("\nreached", lambda row: number(_rates(row).get("patch"), ".2f")),
)


def bench_tables(report: BenchReport, *, wide: bool = False) -> Iterator[Table]:
    """Return the rows as people read them: speed, cost and, of a replay, the rates that it reached."""
    rows = report.rows
    yield fields_table("speed", rows, _NAMES, _SPEED, wide=wide)
    yield fields_table("cost: model calls per byte; weight traffic and time saved", rows, _NAMES, _COST, wide=wide)
    if any(row.replay for row in rows):
        yield fields_table("replay: drafts kept, steps per block, bytes per patch", rows, _NAMES, _REPLAY, wide=wide)


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
