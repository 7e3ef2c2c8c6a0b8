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

from fastblt.commands.console import table_console
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.backends.registry import default_capacity
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import MANIFEST_FILE
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.bench.plan import BenchPlan, Contender, make_bench_plan
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.runner import measure, write_report
from fastblt.runtime.measure.peers import PEERS, Generator, load_peer
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.methods.replay_profile import ReplayProfile


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, as the command line gives it."""

    methods: str = "ar"
    against: str = ""
    backend: str = "onnxruntime"
    provider: str = "auto"
    threads: int | None = None
    max_bytes: int | None = None
    prompts: int = 8
    prompt_bytes: int = 64
    corpora: str = ""
    max_new_bytes: int = 128
    repeats: int = 1
    replay: str | None = None
    """See `fastblt.runtime.measure.replay.rates`."""


def run(bundle: Path, setting: BenchRequest, json_file: Path | None) -> None:
    """Measure and report.

    Raises:
        MethodError: a method does not exist, or the model cannot run it.
        ValueError: there is no such corpus, or it has too few prompts.
        ReplayError: ``replay`` is malformed or does not fit the methods.
        CapacityError: prompts and new bytes do not fit ``max_bytes``.
        BundleError: the bundle cannot be used.
    """
    layout = make_bench_plan(setting.backend, split_names(setting.methods), split_names(setting.against))
    replay = parse_replay(setting.replay, layout)
    corpora = split_names(setting.corpora)
    prompts = heldout_prompts(setting.prompts, setting.prompt_bytes, corpora)
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"{json_file}: found a folder, expected the name of a file to write")
    needed = setting.prompt_bytes + setting.max_new_bytes
    max_bytes = setting.max_bytes or default_capacity(setting.backend, needed)
    names = dict.fromkeys(contender.backend for contender in layout.contenders)
    runtimes = {name: _load(bundle, name, setting, max_bytes) for name in names}
    rows = _measure(runtimes, layout, prompts, setting, replay)
    device = device_info(setting.threads)
    if json_file is not None:
        write_report(json_file, device, rows, setting.replay)
    console = table_console()
    if setting.replay is not None:
        console.print(f"REPLAY ({setting.replay}): {_REPLAY_NOTE}\n", soft_wrap=True)
    for table in bench_tables(rows, layout):
        console.print(table)
        console.print()
    line = compared(rows, layout, device, runtimes[setting.backend].config.name, bundle_dtype(bundle), corpora)
    console.print(line, soft_wrap=True)


def _load(bundle: Path, name: str, setting: BenchRequest, max_bytes: int) -> Generator:
    """A backend of ours, or a peer."""
    if name in PEERS:
        return load_peer(bundle, name, setting.provider, setting.threads)
    return BltRuntime.from_pretrained(
        bundle, provider=setting.provider, backend=name, max_bytes=max_bytes, threads=setting.threads
    )


#: What a replay's figures are, in front of its tables.
_REPLAY_NOTE = (
    "real graphs and control flow at given rates; the text is not the model's, nothing is said about quality."
)


def parse_replay(text: str | None, layout: BenchPlan) -> ReplayRates | None:
    """What the plan is driven by; None: nothing, the model's own output is measured.

    Raises:
        ReplayError: it is malformed, or about a method that is not in the plan.
    """
    if text is None:
        return None
    return ReplayRates.parse(text, list(dict.fromkeys(contender.method for contender in layout.contenders)))


def split_names(text: str) -> list[str]:
    """The names in a list with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _measure(
    runtimes: dict[str, Generator],
    layout: BenchPlan,
    prompts: list[bytes],
    setting: BenchRequest,
    replay: ReplayRates | None,
) -> list[BenchRow]:
    config = runtimes[setting.backend].config
    profiles: dict[Contender, ReplayProfile] | None = None
    if replay is not None:
        profiles = {contender: replay.profile(contender.method, config) for contender in layout.contenders}
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

        return measure(
            runtimes,
            layout,
            prompts,
            setting.max_new_bytes,
            setting.repeats,
            on_run,
            profiles=profiles,
            threads=setting.threads,
        ).rows()


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


def bundle_dtype(bundle: Path) -> str:
    """Type that a bundle computes in; a bare checkpoint, which only eager runs, is computed in fp32."""
    return Bundle.open(bundle, check=False).manifest.dtype if (bundle / MANIFEST_FILE).is_file() else "fp32"


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
