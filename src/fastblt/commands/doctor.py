"""``fastblt doctor``: what this machine has, what will work, and what to install."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fastblt.commands.console import table_console
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import engine_folders, load_engine_folder
from fastblt.runtime.doctor.facts import MachineFacts, probe
from fastblt.runtime.doctor.memory import device_buffers
from fastblt.runtime.doctor.verdicts import Verdict, assess
from fastblt.runtime.measure.report import write_json

_MAX_BYTES = 4096


def run(bundle: Path | None, json_file: Path | None) -> None:
    """Print facts, verdicts, and what they mean for a bundle.

    Raises:
        BundleError: the bundle cannot be used.
    """
    console = table_console()
    with console.status("looking"):
        facts = probe()
    verdicts = assess(facts)
    for line in describe(facts):
        console.print(line, soft_wrap=True, markup=False)
    console.print(_table(verdicts))
    notes = bundle_notes(bundle, facts) if bundle is not None else []
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)
    if json_file is not None:
        report: dict[str, Any] = {
            "facts": dataclasses.asdict(facts),
            "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
            "bundle": notes,
        }
        write_json(json_file, report)


def describe(facts: MachineFacts) -> list[str]:
    """The facts in words, one a line."""
    memory = f", {facts.memory_bytes / 2**30:.0f} GiB" if facts.memory_bytes else ""
    lines = [f"machine: {facts.system}, {facts.cpu}, {facts.cores} cores{memory}, Python {facts.python}"]
    if facts.jetson:
        lines.append(f"jetson: {facts.jetson}")
    lines.append(f"driver: CUDA {facts.driver_cuda}" if facts.driver_cuda else "driver: none")
    for gpu in facts.gpus:
        free, total = gpu.free_bytes / 2**30, gpu.memory_bytes / 2**30
        lines.append(f"GPU: {gpu.name}, SM {gpu.sm}, {free:.1f} of {total:.1f} GiB free")
    lines.append(f"cuda-python: {facts.cuda_bindings or 'not installed'}")
    for library in facts.libraries:
        graphs = "standard and lowered graphs" if library.updates_caches else "lowered graphs"
        lines.append(f"{library.target}: {library.version}, takes {graphs}")
    return lines


def bundle_notes(bundle: Path, facts: MachineFacts) -> list[str]:
    """What the facts mean for a bundle: files, types, memory, engines."""
    opened = Bundle.open(bundle)
    manifest, config = opened.manifest, opened.config
    notes = [f"{bundle}: {manifest.model}, {manifest.dtype}, {manifest.operators} graphs; every file is whole"]
    if manifest.dtype == "bf16":
        notes.append("bf16 graphs do not run on the CPU")
    weights = sum(spec.weight_bytes for spec in manifest.graphs.values())
    needed = weights + sum(device_buffers(config, manifest.dtype, _MAX_BYTES).values())
    notes.append(f"needs about {needed / 2**20:,.0f} MiB on the device for {_MAX_BYTES} bytes of text")
    notes += [
        f"does not fit {gpu.name}: {gpu.free_bytes / 2**20:,.0f} MiB are free"
        for gpu in facts.gpus
        if gpu.free_bytes < needed
    ]
    folders = [load_engine_folder(path) for path in engine_folders(bundle)]
    if not folders:
        notes.append("has no engines: fastblt compile makes them")
    for folder in folders:
        library = facts.library(folder.target)
        fits = library is not None and library.version == folder.version
        fits = fits and bool(facts.gpus) and facts.gpus[0].sm in folder.sms
        notes.append(f"engines {folder.path.name}: {'fit this machine' if fits else 'do not fit this machine'}")
    return notes


def _table(verdicts: list[Verdict]) -> Table:
    table = Table(box=box.SIMPLE)
    for title in ("way", "works", "why", "what to do"):
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        table.add_row(verdict.way, "yes" if verdict.works else "no", verdict.reason, verdict.remedy)
    return table
