"""``fastblt verify``: what a backend computes on this machine against the CPU, tensor by tensor and byte by byte."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.commands.audit import DEFAULT_METHODS, AuditError, print_audit, runnable_methods
from fastblt.commands.console import table_console
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend, session_options
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.registry import load_backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import engine_folders, load_engine_folder
from fastblt.runtime.bundle.manifest import Manifest
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.audit import TIE_BOUND, AuditRow, audit
from fastblt.runtime.measure.bench.runner import write_json
from fastblt.runtime.measure.verify.lockstep import Comparison
from fastblt.runtime.measure.verify.rounds import compare_rounds, tolerance_of
from fastblt.runtime.methods import parse_method

#: Lengths of the prompts, bytes: one row, a few, more than one call, past the windows.
PROMPT_BYTES = (0, 5, 100, 700)
_AUDIT_PROMPT_BYTES = 96


class DeviceError(ValueError):
    """A backend computes something else than the CPU does."""


@dataclass(frozen=True)
class VerifyRequest:
    """What to verify, as the command line gives it."""

    backend: str | None = None
    """None: that of the engines in the bundle, else ONNX Runtime."""
    provider: str = "cuda"
    methods: tuple[str, ...] | None = None
    prompts: int = 4
    """Of the audit."""
    max_new_bytes: int = 64


def run(bundle: Path, setting: VerifyRequest, json_file: Path | None) -> None:
    """Compare, audit, print, and fail where something is amiss.

    Raises:
        DeviceError: a tensor differs by more than rounding.
        AuditError: a text does.
        ValueError: bundle or backend cannot be used.
    """
    console = table_console()
    opened = Bundle.open(bundle, check=False)
    manifest, config = opened.manifest, opened.config
    backend = setting.backend or _backend_of(bundle)
    methods = runnable_methods(setting.methods, config, console, DEFAULT_METHODS)
    capacity = max(*PROMPT_BYTES, _AUDIT_PROMPT_BYTES) + setting.max_new_bytes
    candidate = load_backend(bundle, backend, setting.provider, capacity, None)
    if not isinstance(candidate, DeviceBackend):
        raise DeviceError(f"backend: found {backend} on the CPU, which is the reference; expected one on a GPU")
    with _reference(bundle, manifest, capacity) as reference:
        comparisons = _compare(reference, candidate, methods, setting, console)
        rows = _audit(reference, candidate, methods, manifest, setting, console)
    wrong = [found for found in comparisons if not tolerance_of(found.graph, manifest.dtype).accepts(found)]
    faults = sum(len(row.faults) for row in rows)
    where = f"{backend} on {candidate.device}"
    title = f"{bundle}: {manifest.model}, {manifest.dtype}, {where}, against ONNX Runtime on the CPU"
    console.print(title, soft_wrap=True)
    console.print(_table(comparisons, manifest.dtype))
    print_audit(console, rows, "onnxruntime (CPU)", TIE_BOUND[manifest.dtype])
    console.print("FAILED" if wrong or faults else "passed")
    if json_file is not None:
        write_json(json_file, _report(bundle, manifest, backend, candidate, comparisons, rows, not (wrong or faults)))
    if wrong:
        first, limit = wrong[0], tolerance_of(wrong[0].graph, manifest.dtype)
        raise DeviceError(
            f"{bundle}: {first.graph}, output {first.output}: found a relative error of {first.max_error:.3g} and a "
            f"cosine of {first.cosine:.6f}, expected at most {limit.max_error:g} and at least {limit.cosine:g}"
        )
    if faults:
        raise AuditError(f"{bundle}: found {faults} outputs that differ by more than rounding, expected none")


def _backend_of(bundle: Path) -> str:
    """The backend of the engines that a bundle has, else ONNX Runtime."""
    targets = [load_engine_folder(path).target for path in engine_folders(bundle)]
    return targets[0] if targets else "onnxruntime"


@contextmanager
def _reference(bundle: Path, manifest: Manifest, capacity: int) -> Iterator[OnnxRuntimeBackend]:
    """The bundle on the CPU; where there are no kernels for its type, a twin in wider arithmetic."""
    # A GPU multiplies with quantised weights as the graph says: it does not round their inputs to 8 bits.
    exact = session_options(manifest, None, exact=True)
    if manifest.dtype != "bf16":
        yield OnnxRuntimeBackend.load(bundle, capacity, None, exact)
        return
    from fastblt.export.emulation import emulate_bf16

    with tempfile.TemporaryDirectory(prefix="fastblt-") as folder:
        emulate_bf16(bundle, Path(folder) / "twin")
        yield OnnxRuntimeBackend.load(Path(folder) / "twin", capacity, None, exact)


def _compare(
    reference: OnnxRuntimeBackend,
    candidate: DeviceBackend,
    methods: tuple[str, ...],
    setting: VerifyRequest,
    console: Console,
) -> list[Comparison]:
    texts = [load_text(corpus) for corpus in CORPORA]
    prompts = [texts[i % len(texts)][:size] for i, size in enumerate(PROMPT_BYTES)]
    columns = (TextColumn("comparing rounds"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(methods) * len(prompts))
        parsed = [parse_method(name) for name in methods]
        return compare_rounds(reference, candidate, parsed, prompts, setting.max_new_bytes, lambda: bar.advance(task))


def _audit(
    reference: OnnxRuntimeBackend,
    candidate: DeviceBackend,
    methods: tuple[str, ...],
    manifest: Manifest,
    setting: VerifyRequest,
    console: Console,
) -> list[AuditRow]:
    prompts = [(name, data[:_AUDIT_PROMPT_BYTES]) for name, data in distinct_prompts()[: setting.prompts]]
    runtime = BltRuntime(candidate)
    with console.status("audit"):
        return audit(
            BltRuntime(reference),
            [(runtime, method) for method in methods],
            prompts,
            setting.max_new_bytes,
            TIE_BOUND[manifest.dtype],
        )


def _table(comparisons: list[Comparison], dtype: str) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("graph", "output"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "values", "max error", "limit", "cosine", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for found in comparisons:
        limit = tolerance_of(found.graph, dtype)
        table.add_row(
            found.graph,
            found.output,
            f"{found.calls:,}",
            f"{found.values:,}",
            f"{found.max_error:.2g}",
            f"{limit.max_error:g}",
            f"{found.cosine:.6f}",
            "ok" if limit.accepts(found) else "FAILED",
        )
    return table


def _report(
    bundle: Path,
    manifest: Manifest,
    backend: str,
    candidate: DeviceBackend,
    comparisons: list[Comparison],
    rows: list[AuditRow],
    passed: bool,
) -> dict[str, Any]:
    return {
        "passed": passed,
        "bundle": bundle.name,
        "model": manifest.model,
        "dtype": manifest.dtype,
        "operators": manifest.operators,
        "backend": backend,
        "sm": candidate.stream.cuda.sm,
        "machine": device_info(),
        "tensors": [
            {
                **dataclasses.asdict(found),
                "max_error": found.max_error if found.max_error < float("inf") else None,
                "limit": tolerance_of(found.graph, manifest.dtype).max_error,
                "passed": tolerance_of(found.graph, manifest.dtype).accepts(found),
            }
            for found in comparisons
        ],
        "audit": [dataclasses.asdict(row) for row in rows],
    }
