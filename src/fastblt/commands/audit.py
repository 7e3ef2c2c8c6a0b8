"""``fastblt audit``: every method against the reference's autoregressive output, byte for byte."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fastblt.calibration.heldout import CORPORA, load_prompts
from fastblt.runtime.audit import TIE_BOUND, AuditRow, audit
from fastblt.runtime.bench import write_json
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle import load_manifest


class AuditError(ValueError):
    """An output differs from the reference by more than rounding."""


@dataclass(frozen=True)
class Setting:
    """What to audit, as the command line gives it."""

    methods: tuple[str, ...]
    reference: str = "eager"
    provider: str = "auto"
    prompts: int = 64
    max_new_bytes: int = 256


def run(bundle: Path, setting: Setting, json_file: Path | None) -> None:
    """Generate, compare, print a table.

    Raises:
        AuditError: there is a fault, i.e. a difference that is no float tie.
        BundleError: the bundle cannot be used.
    """
    prompts = _prompts(setting.prompts)
    capacity = setting.max_new_bytes + max(len(data) for _, data in prompts)
    runtime = BltRuntime.from_pretrained(bundle, provider=setting.provider, max_bytes=capacity)
    reference = runtime
    if setting.reference != runtime.backend.name:
        reference = BltRuntime.from_pretrained(
            bundle, provider=setting.provider, backend=setting.reference, max_bytes=capacity
        )
    bound = TIE_BOUND[load_manifest(bundle).dtype]
    columns = (TextColumn("audit"), BarColumn(), MofNCompleteColumn())
    console = Console(highlight=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("audit", total=len(prompts))
        rows = audit(
            reference,
            [(runtime, method) for method in setting.methods],
            prompts,
            setting.max_new_bytes,
            bound,
            lambda done: bar.update(task, completed=done),
        )
    _print(console, rows, reference.backend.name, bound)
    if json_file is not None:
        report = {"reference": f"{reference.backend.name} ar", "tie_bound": bound}
        write_json(json_file, {**report, "rows": [dataclasses.asdict(row) for row in rows]})
    faults = sum(len(row.faults) for row in rows)
    if faults:
        raise AuditError(f"{bundle}: found {faults} outputs that differ by more than rounding, expected none")


def _prompts(count: int) -> list[tuple[str, bytes]]:
    """Held-out prompts, the corpora in turn."""
    each = [load_prompts(corpus) for corpus in CORPORA]
    shipped = [prompt for group in zip(*each, strict=False) for prompt in group]
    if count > len(shipped):
        raise ValueError(f"prompts: found {count}, expected at most {len(shipped)}")
    return [(prompt.id, prompt.data) for prompt in shipped[:count]]


def _print(console: Console, rows: list[AuditRow], reference: str, bound: float) -> None:
    table = Table(box=box.SIMPLE)
    for name in ("backend", "method", "prompts", "bytes", "identical", "float ties", "faults"):
        table.add_column(name, justify="left" if name in ("backend", "method") else "right")
    for row in rows:
        counts = (row.prompts, row.bytes, row.identical, len(row.ties), len(row.faults))
        table.add_row(row.backend, row.method, *(f"{value:,}" for value in counts))
    console.print(table)
    for row in rows:
        for kind, differences in (("tie", row.ties), ("FAULT", row.faults)):
            for d in differences:
                console.print(
                    f"{kind}: {row.method}, prompt {d.prompt}, new byte {d.offset}: logits {d.logit_gap:.2e} apart, "
                    f"nearest entropy {d.boundary_gap:.2e} nats from the threshold",
                    soft_wrap=True,
                )
    console.print(
        f"reference: {reference} ar; a float tie is a first difference where the reference's logits of the two bytes "
        f"are within {bound:g}",
        soft_wrap=True,
    )
