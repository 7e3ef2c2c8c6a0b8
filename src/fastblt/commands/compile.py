"""``fastblt compile``: compiles a bundle's graphs to TensorRT engines and prints a table of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fastblt.commands.checks import check_bundle, check_file_target
from fastblt.commands.choice import Choice
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import BundleArgument, Dtype, joined, numbers
from fastblt.commands.output import add_row, left, make_table, print_table, progress, right, stdout, words

if TYPE_CHECKING:
    from fastblt.runtime.bundle.engines import EngineFolder

#: What TensorRT-RTX compiles for where neither --sm nor a GPU decides: Ampere, Ada and Blackwell GPUs.
DEFAULT_SMS = (86, 89, 120)


class EngineTarget(Choice):
    """Compilers of engines."""

    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"


def command(
    bundle: BundleArgument,
    target: Annotated[
        EngineTarget,
        typer.Option(
            help="tensorrt-rtx: for GeForce RTX GPUs, compiles on any machine; tensorrt: for the GPU of this machine."
        ),
    ] = EngineTarget.TENSORRT_RTX,
    sm: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated compute capabilities of the GPUs to compile for, such as 89 for Ada  [default: this "
            f"machine's GPU; without one {joined(DEFAULT_SMS)}]"
        ),
    ] = None,
    max_bytes: Annotated[
        str,
        typer.Option(
            help="Comma-separated lengths of text, prompt included, to compile for; the engines serve every length up "
            "to the longest."
        ),
    ] = "512,2048,8192",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Fail if the bundle has another type; engines have the bundle's type.")
    ] = None,
    max_patch_bytes: Annotated[
        int | None, typer.Option(min=1, help="Longest patch, if the model does not limit it  [default: 512]")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File where TensorRT keeps its kernel timings, to compile faster next time.")
    ] = None,
    sequences: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Most texts that share a call of the model; more take more memory and time to compile.",
        ),
    ] = 1,
) -> None:
    """Compile a bundle to TensorRT engines.

    Engines are written to the folder engines/ of the bundle, beside those that are there.
    """
    with usage_errors():
        sms = None if sm is None else tuple(numbers("sm", sm, int))
        capacities = tuple(sorted(set(numbers("max-bytes", max_bytes, int))))
    check_bundle(bundle)
    check_file_target(timing_cache)
    from fastblt.export.engine_compiler import CompileRequest, compile_bundle
    from fastblt.runtime.bundle.tensorrt_library import load_library

    library = load_library(target.value)
    request = CompileRequest(
        _targets(target, sms),
        capacities,
        None if dtype is None else dtype.value,
        max_patch_bytes,
        timing_cache,
        sequences,
    )
    with progress(f"compiling with {library.label}") as on_progress:
        folder = compile_bundle(bundle, library, request, on_progress)
    console = stdout()
    targets = ", ".join(str(number) for number in folder.sms)
    console.print(f"{folder.path}: {library.label}, SM {targets}, {folder.dtype}", soft_wrap=True)
    print_table(console, _table(folder))


def _targets(target: EngineTarget, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the compute capabilities to compile for.

    Those asked for, else that of this machine's GPU, else (TensorRT-RTX) `DEFAULT_SMS`.
    """
    from fastblt.runtime.backends.gpu.cuda import Cuda, CudaError, load_api
    from fastblt.runtime.bundle.tensorrt_library import TensorRtError

    if target == EngineTarget.TENSORRT:
        here = Cuda(load_api()).sm
        if asked not in (None, (here,)):
            found = ", ".join(str(number) for number in asked or ())
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
    numeric = ("MB", "seconds", "cache\nslots", "updated\nin place")
    table = make_table(left("engine"), words("bytes of text\nup to"), *(right(heading) for heading in numeric))
    for index, engine in enumerate(folder.engines):
        capacities = [str(size) for size, parts in folder.capacities.items() if index in parts.values()]
        add_row(
            table,
            engine.file,
            ", ".join(capacities),
            f"{engine.bytes / 1e6:.1f}",
            f"{engine.build_seconds:.1f}",
            f"{engine.least_slots} to {engine.slots}" if engine.any_slots else str(engine.slots),
            str(len(engine.aliases)),
        )
    return table
