"""``fastblt compile``: engines of a bundle, and a table of them."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fastblt.commands.console import table_console
from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.runtime.backends.gpu.cuda import Cuda, CudaError, load_api
from fastblt.runtime.bundle.engines import EngineFolder
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, load_library

#: What TensorRT-RTX compiles for where neither SM nor GPU says so: Ampere, Ada and Blackwell GPUs.
DEFAULT_SMS = (86, 89, 120)


def run(
    bundle: Path,
    target: str,
    sms: tuple[int, ...] | None,
    capacities: tuple[int, ...],
    *,
    dtype: str | None,
    max_patch_bytes: int | None,
    timing_cache: Path | None,
) -> None:
    """Compile, and print what was made.

    Raises:
        ValueError: bundle, target or request cannot be used, or a graph cannot be compiled.
        CudaError: TensorRT needs the GPU that it compiles for, and there is none.
    """
    library = load_library(target)
    request = CompileRequest(_sms(target, sms), tuple(sorted(set(capacities))), dtype, max_patch_bytes, timing_cache)
    progress = Console(stderr=True, highlight=False)
    with progress.status(f"compiling with {library.label}") as status:
        folder = compile_bundle(bundle, library, request, status.update)
    console = table_console()
    targets = ", ".join(str(sm) for sm in folder.sms)
    console.print(f"{folder.path}: {library.label}, SM {targets}, {folder.dtype}", soft_wrap=True)
    console.print(_table(folder))


def _sms(target: str, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """Compute capabilities to compile for: those asked for, else this machine's GPU, else (TensorRT-RTX) the usual."""
    if target == "tensorrt":
        here = Cuda(load_api()).sm
        if asked not in (None, (here,)):
            found = ", ".join(str(sm) for sm in asked or ())
            raise TensorRtError(
                f"sm: found {found}, expected {here}: TensorRT compiles on the GPU that it compiles for"
            )
        return (here,)
    if asked is not None:
        return tuple(sorted(set(asked)))
    try:
        return (Cuda(load_api()).sm,)
    except CudaError:
        return DEFAULT_SMS


def _table(folder: EngineFolder) -> Table:
    table = Table(box=box.SIMPLE)
    for title in ("engine", "for max bytes"):
        table.add_column(title)
    for title in ("MB", "seconds", "cache slots", "in place"):
        table.add_column(title, justify="right")
    for index, engine in enumerate(folder.engines):
        capacities = [str(size) for size, parts in folder.capacities.items() if index in parts.values()]
        table.add_row(
            engine.file,
            ", ".join(capacities),
            f"{engine.bytes / 1e6:.1f}",
            f"{engine.build_seconds:.1f}",
            str(engine.slots),
            str(len(engine.aliases)),
        )
    return table
