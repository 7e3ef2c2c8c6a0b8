"""``fastblt bench``: load, measure, print the table, write the JSON file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.bench import BenchRow, Contender, Plan, device_info, make_plan, measure, write_report
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle import MANIFEST_FILE, load_manifest

#: What one table with all columns needs; a file or a pipe has no width of its own.
TABLE_WIDTH = 138


@dataclass(frozen=True)
class Setting:
    """What to measure, as the command line gives it."""

    methods: str = "ar"
    against: str = ""
    backend: str = "onnxruntime"
    provider: str = "auto"
    threads: int | None = None
    max_bytes: int | None = None
    prompts: int = 8
    prompt_bytes: int = 64
    max_new_bytes: int = 128
    repeats: int = 1


def run(bundle: Path, setting: Setting, json_file: Path | None) -> None:
    """Measure and report.

    Raises:
        MethodError: a method does not exist.
        CapacityError: prompts and new bytes do not fit ``max_bytes``.
        BundleError: the bundle cannot be used.
    """
    layout = make_plan(setting.backend, split_names(setting.methods), split_names(setting.against))
    prompts = heldout_prompts(setting.prompts, setting.prompt_bytes)
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"{json_file}: found a folder, expected the name of a file to write")
    needed = setting.prompt_bytes + setting.max_new_bytes
    runtimes = {
        backend: BltRuntime.from_pretrained(
            bundle,
            provider=setting.provider,
            backend=backend,
            max_bytes=max(4096, needed) if setting.max_bytes is None else setting.max_bytes,
            threads=setting.threads,
        )
        for backend in dict.fromkeys(contender.backend for contender in layout.contenders)
    }
    rows = _measure(runtimes, layout, prompts, setting)
    device = device_info(setting.threads)
    if json_file is not None:
        write_report(json_file, device, rows)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    for table in bench_tables(rows, layout, console.width):
        console.print(table)
        console.print()
    line = compared(rows, layout, device, runtimes[setting.backend].config.name, bundle_dtype(bundle))
    console.print(line, soft_wrap=True)


def split_names(text: str) -> list[str]:
    """The names in a list with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _measure(runtimes: dict[str, BltRuntime], layout: Plan, prompts: list[bytes], setting: Setting) -> list[BenchRow]:
    runs = len(layout.contenders) * (1 + setting.repeats * len(prompts))
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    # Drawn only between runs: a thread that redraws would disturb what is measured.
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=runs)

        def on_run(contender: Contender) -> None:
            bar.update(task, advance=1, description=str(contender))
            bar.refresh()

        return measure(runtimes, layout, prompts, setting.max_new_bytes, setting.repeats, on_run).rows()


def bench_tables(rows: Sequence[BenchRow], layout: Plan, width: int) -> list[Table]:
    """The rows as people read them: one table, or two (speed, cost) where one would not fit."""
    reference = {"onnxruntime": "ORT"}.get(layout.backend, layout.backend)
    speed = [
        *("bytes/s", "ms/byte\np50", "ms/byte\np95", "first\nms", "drafts\nkept"),
        *("x eager\nar", f"x {reference}\nar", "output\nsame?"),
    ]
    cost = [
        "NFE\npatcher",
        "NFE\nencoder",
        "NFE\nglobal",
        "NFE\ndecoder",
        "estim.\nGB",
        "moved\nGB",
        "moved\nGB/s",
        "host\n%",
    ]
    if width >= TABLE_WIDTH:
        return [_table(rows, [*speed, *cost], lambda row: [*_speed(row), *_cost(row)])]
    return [_table(rows, speed, _speed), _table(rows, cost, _cost)]


def _table(rows: Sequence[BenchRow], headings: list[str], cells: Callable[[BenchRow], list[str]]) -> Table:
    table = Table("backend", "method", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.backend, row.method, *cells(row))
    return table


def _speed(row: BenchRow) -> list[str]:
    return [
        f"{row.bytes_per_s:.1f}",
        f"{row.ms_per_byte_p50:.3f}",
        f"{row.ms_per_byte_p95:.3f}",
        f"{row.first_byte_ms:.1f}",
        "-" if row.acceptance is None else f"{100 * row.acceptance:.1f} %",
        "-" if row.ratio_to_eager_ar is None else f"{row.ratio_to_eager_ar:.2f}",
        "-" if row.ratio_to_ar is None else f"{row.ratio_to_ar:.2f}",
        "yes" if row.identical_to_ar else "NO",
    ]


def _cost(row: BenchRow) -> list[str]:
    calls = (row.nfe_patcher, row.nfe_encoder, row.nfe_global, row.nfe_decoder)
    host = 100 * row.us_per_byte["host"] / (sum(row.us_per_byte.values()) or 1.0)
    return [
        *map(str, calls),
        f"{row.estimated_gb:.3g}",
        f"{row.moved_gb:.3g}",
        f"{row.moved_gb_per_s:.1f}",
        f"{host:.0f}",
    ]


def bundle_dtype(bundle: Path) -> str:
    """Type that a bundle computes in; a bare checkpoint, which only eager runs, is computed in fp32."""
    return load_manifest(bundle).dtype if (bundle / MANIFEST_FILE).is_file() else "fp32"


def compared(rows: Sequence[BenchRow], layout: Plan, device: dict[str, Any], model: str, dtype: str) -> str:
    """One line that says what the table compares."""
    row = rows[0]
    threads = "chosen by the backend" if device["threads"] is None else str(device["threads"])
    places = ", ".join(dict.fromkeys(row.device for row in rows))
    repeats = f", {row.repeats} times" if row.repeats > 1 else ""
    other = f", {layout.backend}'s ar with {layout.baseline}'s" if layout.baseline else ""
    return (
        f"{model} ({dtype}) on {places}: {device['cpu']}, {device['usable_cores']} cores, threads {threads}; "
        f"held-out prompts: {row.prompts} of {row.prompt_bytes // row.prompts} bytes{repeats}; "
        f"{row.bytes} new bytes a row, greedy; rates without the prompt; "
        f"one thread reads memory at {device['memory_gb_per_s']:.1f} GB/s; "
        f"a method's output is compared with its backend's ar{other}."
    )
