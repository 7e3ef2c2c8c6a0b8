"""``fastblt doctor``: reports what this machine has, what works on it, and what to install."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fastblt.commands.checks import check_bundle, check_file_target
from fastblt.commands.options import JsonOption
from fastblt.commands.output import add_row, left, make_table, print_table, stderr, stdout, words
from fastblt.runtime.backends.gpu.memory import device_buffers
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import engine_folders, load_engine_folder
from fastblt.runtime.doctor.engine_memory import EngineMemory, engine_memory
from fastblt.runtime.doctor.facts import MachineFacts, probe
from fastblt.runtime.doctor.nvml import Board
from fastblt.runtime.doctor.verdicts import Verdict, assess
from fastblt.runtime.measure.report import write_json

#: Longest text, prompt included, that memory is reported for.
_MAX_BYTES = 4096


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to check for this machine.")] = None,
    json: JsonOption = None,
) -> None:
    """Report what works on this machine, and what to install.

    Looks for GPU drivers, GPUs, CUDA, TensorRT, ONNX Runtime and PyTorch. None of them has to be there.
    """
    check_file_target(json)
    if bundle is not None:
        check_bundle(bundle)
    with stderr().status("looking"):
        facts = probe()
    verdicts = assess(facts)
    console = stdout()
    for line in describe(facts):
        console.print(line, soft_wrap=True)
    console.print()
    print_table(console, _table(verdicts))
    console.print()
    for line in remedies(verdicts):
        console.print(line, soft_wrap=True)
    notes = bundle_notes(bundle, facts) if bundle is not None else []
    if notes:
        console.print()
    for note in notes:
        console.print(note, soft_wrap=True)
    if json is not None:
        report: dict[str, Any] = {
            "facts": dataclasses.asdict(facts),
            "verdicts": [verdict.as_json() for verdict in verdicts],
            "bundle": notes,
        }
        write_json(json, report)


def describe(facts: MachineFacts) -> list[str]:
    """Return the facts in words, one per line."""
    memory = f", {facts.memory_bytes / 2**30:.0f} GiB" if facts.memory_bytes else ""
    lines = [f"machine: {facts.system}, {facts.cpu}, {facts.cores} cores{memory}, Python {facts.python}"]
    if facts.jetson:
        lines.append(f"jetson: {facts.jetson}")
    versions = [facts.driver_version, f"CUDA {facts.driver_cuda}" if facts.driver_cuda else None]
    lines.append(f"driver: {', '.join(version for version in versions if version) or 'none'}")
    lines += [f"GPU that the driver reports: {_board(board)}" for board in facts.boards]
    for gpu in facts.gpus:
        free, total = gpu.free_bytes / 2**30, gpu.memory_bytes / 2**30
        lines.append(f"GPU that CUDA can use: {gpu.name}, SM {gpu.sm}, {free:.1f} of {total:.1f} GiB free")
    lines.append(f"cuda-python: {facts.cuda_bindings or 'not installed'}")
    for library in facts.libraries:
        graphs = "standard and lowered graphs" if library.updates_caches else "lowered graphs"
        lines.append(f"{library.target}: {library.version}, takes {graphs}")
    return lines


def _board(board: Board) -> str:
    """Return what the driver reports of a GPU, in words."""
    known = [board.name]
    if board.sm is not None:
        known.append(f"SM {board.sm}")
    if board.free_bytes is not None and board.memory_bytes is not None:
        known.append(f"{board.free_bytes / 2**30:.1f} of {board.memory_bytes / 2**30:.1f} GiB free")
    if board.power_limit_watts is not None:
        known.append(f"power limit {board.power_limit_watts:.0f} W")
    if board.max_clock_mhz is not None:
        known.append(f"clock up to {board.max_clock_mhz} MHz")
    return ", ".join(known)


def bundle_notes(bundle: Path, facts: MachineFacts) -> list[str]:
    """Return what the facts mean for a bundle: its files, type, memory and engines.

    Raises:
        BundleError: the bundle cannot be used.
    """
    opened = Bundle.open(bundle)
    manifest, config = opened.manifest, opened.config
    notes = [f"{bundle}: {manifest.model}, {manifest.dtype}, {manifest.operators} graphs; no file is damaged"]
    if manifest.dtype == "bf16":
        notes.append("bf16 graphs do not run on the CPU")
    if any(label.startswith("w4") for label in manifest.precisions):
        notes.append(
            "w4 with onnxruntime --provider cuda: one row and several take different kernels, so rows differ in the "
            "last bits and drafts are slower (by construction; not measured)"
        )
    each = sum(device_buffers(config, manifest.dtype, _MAX_BYTES).values())
    needed = opened.graph_bytes + each
    notes.append(
        f"needs about {needed / 2**20:,.0f} MiB on the device for {_MAX_BYTES} bytes of text, "
        f"{each / 2**20:,.1f} MiB of them for each sequence"
    )
    notes += _too_small(facts, needed)
    folders = [load_engine_folder(path) for path in engine_folders(bundle)]
    if not folders:
        notes.append("has no engines: fastblt compile makes them")
    for folder in folders:
        library = facts.library(folder.target)
        fits = library is not None and library.version == folder.version
        fits = fits and bool(facts.gpus) and facts.gpus[0].sm in folder.sms
        notes.append(f"engines {folder.path.name}: {'fit this machine' if fits else 'do not fit this machine'}")
        for memory in engine_memory(folder, config, manifest):
            notes.append(_engine_note(memory))
            notes += _too_small(facts, memory.total)
    return notes


def _too_small(facts: MachineFacts, needed: int) -> list[str]:
    """Return a line for each GPU that has less free memory than is needed."""
    return [
        f"does not fit {gpu.name}: {gpu.free_bytes / 2**20:,.0f} MiB are free"
        for gpu in facts.gpus or facts.boards
        if gpu.free_bytes is not None and gpu.free_bytes < needed
    ]


def _engine_note(memory: EngineMemory) -> str:
    """Return what engines need for texts of one length, in words."""
    sizes = [("engines", memory.engines), ("activations", memory.activations), ("caches and buffers", memory.buffers)]
    parts = ", ".join(f"{name} {'unknown' if size is None else f'{size / 2**20:,.0f}'}" for name, size in sizes)
    total = f"{memory.total / 2**20:,.0f} MiB"
    each = f"{memory.buffers / 2**20:,.1f} MiB"
    return f"up to {memory.max_bytes:,} bytes of text: {total} on the device ({parts}), each further sequence {each}"


def _table(verdicts: list[Verdict]) -> Table:
    table = make_table(words("to run or compile a bundle"), left("works"), words("why"))
    for verdict in verdicts:
        add_row(table, verdict.use, "yes" if verdict.works else "no", verdict.reason)
    return table


def remedies(verdicts: list[Verdict]) -> list[str]:
    """Return what to do for uses that do not work, each remedy once, as lines that can be copied."""
    uses: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.remedy:
            uses.setdefault(verdict.remedy, []).append(verdict.use)
    return [line for remedy, names in uses.items() for line in (f"for {', '.join(names)}:", f"    {remedy}")]
