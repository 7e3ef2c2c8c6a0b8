"""``fastblt audit``: every method against the reference, byte for byte."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fastblt.commands.prompts import distinct_prompts
from fastblt.models.config import BltConfig
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.measure.audit import TIE_BOUND, AuditRow, Difference, audit
from fastblt.runtime.measure.bench.runner import write_json
from fastblt.runtime.methods import MethodError, parse_method

#: Audited where no methods are given; a model skips what it cannot run.
DEFAULT_METHODS = (
    "ar",
    "s:4",
    "s:8",
    "s:16",
    "dv:8@one",
    "dv:8@0.3",
    "dv:8@eb1.5",
    "dv:8@one+partial",
    "d:8@0.7",
    "d:8@eb1.0",
    "auto",
)
#: Prompts where neither their number nor that of the bytes is given.
DEFAULT_PROMPTS = 64


class AuditError(ValueError):
    """An output differs from the reference by more than rounding, or less was written than was asked for."""


@dataclass(frozen=True)
class AuditRequest:
    """What to audit, as the command line gives it."""

    methods: tuple[str, ...] | None = None
    """None: `DEFAULT_METHODS`."""
    backend: str = "onnxruntime"
    reference: str | None = None
    """None: eager; for a quantised bundle, whose inputs eager does not round, the backend itself."""
    provider: str = "auto"
    prompts: int | None = None
    max_new_bytes: int = 256
    bytes: int | None = None
    """New bytes of each method, instead of a number of prompts."""


def run(bundle: Path, setting: AuditRequest, json_file: Path | None) -> None:
    """Generate, compare, print a table.

    Raises:
        AuditError: there is a fault, i.e. a difference that is no float tie; or the texts ended so early that all
            held-out text gave fewer bytes than were asked for.
        BundleError: the bundle cannot be used.
        MethodError: the model cannot run a method that was asked for.
        ValueError: there is not so much held-out text, or both prompts and bytes are given.
    """
    console = Console(highlight=False)
    prompts = _prompts(setting)
    opened = Bundle.open(bundle, check=False)
    methods = runnable_methods(setting.methods, opened.config, console, DEFAULT_METHODS)
    capacity = setting.max_new_bytes + max(len(data) for _, data in prompts)
    runtime = _load(bundle, setting.backend, setting.provider, capacity)
    truth = setting.reference or (setting.backend if opened.manifest.quantization else "eager")
    reference = runtime if truth == setting.backend else _load(bundle, truth, setting.provider, capacity)
    bound = TIE_BOUND[opened.manifest.dtype]
    columns = (TextColumn("audit"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("audit", total=_least_prompts(setting) if setting.bytes else len(prompts))
        rows = audit(
            reference,
            [(runtime, method) for method in methods],
            prompts,
            setting.max_new_bytes,
            bound,
            lambda done: bar.update(task, completed=done),
            wanted_bytes=setting.bytes,
        )
    print_audit(console, rows, reference.backend.name, bound)
    if json_file is not None:
        write_json(json_file, report(setting, rows, reference.backend.name, bound))
    faults = sum(len(row.faults) for row in rows)
    if faults:
        raise AuditError(f"{bundle}: found {faults} outputs that differ by more than rounding, expected none")
    least = min(row.bytes for row in rows)
    if setting.bytes is not None and least < setting.bytes:
        raise AuditError(f"{bundle}: found {least} bytes after all held-out prompts, expected {setting.bytes}")


def _load(bundle: Path, backend: str, provider: str, capacity: int) -> BltRuntime:
    return BltRuntime.from_pretrained(bundle, provider=provider, backend=backend, max_bytes=capacity)


def report(setting: AuditRequest, rows: list[AuditRow], reference: str, bound: float) -> dict[str, object]:
    """What the JSON file holds."""
    return {
        "reference": f"{reference} ar",
        "tie_bound": bound,
        "max_new_bytes": setting.max_new_bytes,
        "bytes_compared": sum(row.bytes for row in rows),
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def runnable_methods(
    given: tuple[str, ...] | None, config: BltConfig, console: Console, default: tuple[str, ...]
) -> tuple[str, ...]:
    """The methods that were given, or those of a default list that the model can run; the others are named."""
    if given is not None:
        for name in given:
            parse_method(name).check(config)
        return given
    kept, left_out = [], []
    for name in default:
        try:
            parse_method(name).check(config)
            kept.append(name)
        except MethodError:
            left_out.append(name)
    if left_out:
        console.print(f"left out, {config.name} cannot run them: {', '.join(left_out)}", soft_wrap=True)
    return tuple(kept)


def _least_prompts(setting: AuditRequest) -> int:
    """Prompts that are needed if no text ends early."""
    return -(-(setting.bytes or 0) // setting.max_new_bytes)


def _prompts(setting: AuditRequest) -> list[tuple[str, bytes]]:
    """As many prompts as asked for; all there are where a number of bytes is to be reached."""
    if setting.bytes is not None and setting.prompts is not None:
        raise ValueError("audit: found both prompts and bytes, expected one of them")
    known = distinct_prompts()
    if setting.bytes is None:
        count = DEFAULT_PROMPTS if setting.prompts is None else setting.prompts
        if count > len(known):
            raise ValueError(f"prompts: found {count}, expected at most {len(known)}")
        return known[:count]
    if _least_prompts(setting) > len(known):
        most = len(known) * setting.max_new_bytes
        raise ValueError(
            f"bytes: found {setting.bytes}, expected at most {most}: {len(known)} held-out prompts, "
            f"{setting.max_new_bytes} new bytes each"
        )
    return known


def print_audit(console: Console, rows: list[AuditRow], reference: str, bound: float) -> None:
    """A table of what was found, and each difference."""
    table = Table(box=box.SIMPLE)
    for name in ("method", "prompts", "bytes", "identical", "ties", "faults", "as ar"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        counts = (row.prompts, row.bytes, row.identical, len(row.ties), len(row.faults))
        same = f"{row.bytes_as_ar / row.ar_bytes:.1%}" if row.ar_bytes else "-"
        table.add_row(row.method, *(f"{value:,}" for value in counts), same)
    console.print(table)
    for row in rows:
        for kind, differences in (("tie", row.ties), ("FAULT", row.faults)):
            for d in differences:
                console.print(f"{kind}: {row.method}, {_describe(d)}", soft_wrap=True)
    console.print(
        f"{rows[0].backend} against {reference} ar; a method that is not lossless against {reference} with the same "
        f"method. A tie is a first difference where one of the reference's choices was within {bound:g}. As ar: bytes "
        "before the first difference from the reference's ar.",
        soft_wrap=True,
    )


def _describe(d: Difference) -> str:
    order = "" if d.order_gap is None else f"other bytes of the block would be next by {d.order_gap:.2e}, "
    return (
        f"prompt {d.prompt}, new byte {d.offset}: logits {d.logit_gap:.2e} apart, {order}"
        f"nearest entropy {d.boundary_gap:.2e} nats from the threshold"
    )
