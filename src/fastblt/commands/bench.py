"""``fastblt bench``: load, measure, print the table, write the JSON file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fastblt.commands.console import progress_bar, table_console
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.measure.bench.plan import BenchPlan
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchRequest, run_bench
from fastblt.runtime.measure.report import write_json


def run(
    bundle: Path, request: BenchRequest, json_file: Path | None, *, prompts: int, prompt_bytes: int, corpora: str
) -> None:
    """Measure and report; errors as in `run_bench` and `heldout_prompts`."""
    sources = split_names(corpora)
    texts = heldout_prompts(prompts, prompt_bytes, sources)
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"{json_file}: found a folder, expected the name of a file to write")
    with progress_bar("measuring") as on_progress:
        report = run_bench(bundle, request, texts, on_progress)
    if json_file is not None:
        write_json(json_file, report.to_dict())
    console = table_console()
    if request.replay is not None:
        console.print(f"REPLAY ({request.replay}): {_REPLAY_NOTE}\n", soft_wrap=True)
    for table in bench_tables(report.rows, report.plan):
        console.print(table)
        console.print()
    line = compared(report.rows, report.plan, report.device, report.model, report.dtype, sources)
    console.print(line, soft_wrap=True)


#: What a replay's figures are, in front of its tables.
_REPLAY_NOTE = (
    "real graphs and control flow at given rates; the text is not the model's, nothing is said about quality."
)


def split_names(text: str) -> list[str]:
    """The names in a list with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def bench_tables(rows: Sequence[BenchRow], layout: BenchPlan) -> list[Table]:
    """The rows as people read them: speed; cost and what becomes of the estimate; of a replay, the rates it had."""
    reference = {"onnxruntime": "ORT"}.get(layout.backend, layout.backend)
    speed = [
        *("bytes/s", "ms/byte\np50", "ms/byte\np95", "first\nms", "drafts\nkept"),
        *("x eager\nar", f"x {reference}\nar", "output\nsame?", "as ar\nup to", "host\n%"),
    ]
    cost = [
        *("NFE/512\ndecoder", "NFE/512\nencoder", "NFE/512\nglobal", "est. GB\n/512", "est.\nsaved", "time\nsaved"),
        *("moved\nMB/byte", "us/byte", "limit\nus/byte", "x limit"),
    ]
    tables = [_table(rows, speed, _speed), _table(rows, cost, _cost)]
    if any(row.replay for row in rows):
        rates = [
            f"{name}\n{kind}" for name in ("acceptance", "steps/block", "bytes/patch") for kind in ("wanted", "was")
        ]
        tables.append(_table(rows, rates, _rates))
    return tables


def _table(rows: Sequence[BenchRow], headings: list[str], cells: Callable[[BenchRow], list[str]]) -> Table:
    table = Table("backend", "method", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.backend, row.method, *cells(row))
    return table


def _speed(row: BenchRow) -> list[str]:
    host = 100 * row.us_per_byte["host"] / (sum(row.us_per_byte.values()) or 1.0)
    return [
        f"{row.bytes_per_s:.1f}",
        f"{row.ms_per_byte_p50:.3f}",
        f"{row.ms_per_byte_p95:.3f}",
        f"{row.first_byte_ms:.1f}",
        _percent(row.acceptance),
        _number(row.ratio_to_eager_ar, ".2f"),
        _number(row.ratio_to_ar, ".2f"),
        _same(row),
        _percent(row.agreement_with_ar),
        f"{host:.0f}",
    ]


def _cost(row: BenchRow) -> list[str]:
    return [
        f"{row.nfe_decoder_per_512:.0f}",
        f"{row.nfe_encoder_per_512:.0f}",
        f"{row.nfe_global_per_512:.0f}",
        f"{row.estimated_gb_per_512:.3g}",
        _percent(row.estimated_saving, 0),
        _percent(row.measured_saving, 0),
        f"{1e3 * row.moved_gb / max(1, row.bytes):.3g}",
        f"{sum(row.us_per_byte.values()):.0f}",
        _number(row.limit_us_per_byte, ".0f"),
        _number(row.times_limit, ".2f"),
    ]


def _rates(row: BenchRow) -> list[str]:
    rates = row.replay or {}
    return [
        _percent(rates.get("wanted_acceptance"), 2),
        _percent(rates.get("acceptance"), 2),
        _number(rates.get("wanted_steps"), ".2f"),
        _number(rates.get("steps"), ".2f"),
        _number(rates.get("wanted_patch"), ".2f"),
        _number(rates.get("patch"), ".2f"),
    ]


def _same(row: BenchRow) -> str:
    """Whether the output is what it has to be; methods that are not lossless, and replays, promise nothing."""
    if row.identical_to_ar is None or not row.lossless:
        return "-"
    return "yes" if row.identical_to_ar else "NO"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def compared(
    rows: Sequence[BenchRow],
    layout: BenchPlan,
    device: dict[str, Any],
    model: str,
    dtype: str,
    corpora: Sequence[str] = (),
) -> str:
    """One line that says what the table compares; ``corpora``: where the prompts are from, if that was asked for."""
    row = rows[0]
    threads = "chosen by the backend" if device["threads"] is None else str(device["threads"])
    places = ", ".join(dict.fromkeys(row.device for row in rows))
    source = f" ({', then '.join(corpora)})" if corpora else ""
    repeats = f", {row.repeats} times" if row.repeats > 1 else ""
    other = f", {layout.backend}'s ar with {layout.baseline}'s" if layout.baseline else ""
    limit = f"limit at {row.limit_gb_per_s:.1f} GB/s; " if row.limit_gb_per_s else ""
    output = "replay" if row.replay else f"a method's output is compared with its backend's ar{other}"
    return (
        f"{model} ({dtype}) on {places}: {device['cpu']}, {device['usable_cores']} cores, threads {threads}; "
        f"held-out prompts{source}: {row.prompts} of {row.prompt_bytes // row.prompts} bytes{repeats}; "
        f"{row.bytes} new bytes a row, greedy; rates without the prompt; "
        f"one thread reads memory at {device['memory_gb_per_s']:.1f} GB/s; "
        f"{limit}{output}."
    )
