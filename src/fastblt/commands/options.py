"""Options that several commands share: declared once, with one text and one default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from fastblt.commands.choice import Choice
from fastblt.commands.errors import UsageError
from fastblt.models.formats.hub_id import SYNTAX
from fastblt.models.formats.registry import layouts_help
from fastblt.models.limits import TEXT_BYTES, THREADS
from fastblt.runtime.backends.entry import ROW_FLOORS
from fastblt.runtime.backends.registry import PROVIDER_SUMMARIES, backend_names, backends, backends_help, providers_help
from fastblt.runtime.methods.registry import bench_defaults, methods_help

N = TypeVar("N", int, float)

#: What stands for a text that a registry generates, in the help of an option or argument.
_GENERATED = {
    "{methods}": methods_help,
    "{bench_methods}": lambda: ",".join(bench_defaults()),
    "{backends}": backends_help,
    "{backend_names}": lambda: ", ".join(backend_names()),
    "{providers}": providers_help,
    "{layouts}": layouts_help,
}


class Dtype(Choice):
    """Types that a bundle can compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def one_of(*names: str) -> Callable[[str], str]:
    """Return the callback of an option that takes one of these names; anything else is a usage error."""

    def check(name: str) -> str:
        if name not in names:
            raise typer.BadParameter(f"found {name!r}, expected one of {', '.join(names)}")
        return name

    return check


BundleArgument = Annotated[Path, typer.Argument(help="Bundle: a folder that `fastblt export` wrote.")]
CheckpointArgument = Annotated[
    str,
    typer.Argument(help="Checkpoint: {layouts}."),
]
PatcherOption = Annotated[
    str | None,
    typer.Option(
        help=f"Folder or hub id ({SYNTAX}[@REVISION]) of the entropy model that ends patches  "
        "[default: the checkpoint's own]"
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(help="Commit, tag or branch of a checkpoint on the hub  [default: the newest of the main branch]"),
]
DocumentMasksOption = Annotated[
    bool | None,
    typer.Option(
        "--document-masks/--no-document-masks",
        help="Let self-attention see only the current document; an end-of-document token ends one  [default: as the "
        "model was trained, by its layout]",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a bundle that is already in the target folder.")]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="Decoding method: {methods}.  [default: auto; with --seed, which does not fix what auto samples: s:8]"
    ),
]
MethodsOption = Annotated[
    str | None,
    typer.Option(help="Comma-separated methods  [default: at least one of each kind that the model can run]"),
]


def _known_provider(name: str) -> str:
    """Return a provider that some backend accepts; anything else is a usage error."""
    return one_of(*dict.fromkeys([*PROVIDER_SUMMARIES, *(p for entry in backends() for p in entry.providers)]))(name)


def _known_row_floor(rows: int) -> int:
    """Return a number of rows that calls may be padded to; anything else is a usage error."""
    if rows not in ROW_FLOORS:
        raise typer.BadParameter(f"found {rows}, expected one of {', '.join(map(str, ROW_FLOORS))}")
    return rows


BackendOption = Annotated[str, typer.Option(help="What runs the model: {backends}.")]
ProviderOption = Annotated[str, typer.Option(callback=_known_provider, help="Where the backend runs it: {providers}.")]
MaxBytesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=TEXT_BYTES,
        help="Longest text to make room for, prompt included  [default: 4096 or more; with engines: what is needed]",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, max=THREADS, help="CPU threads  [default: chosen by the backend]")
]
RowFloorOption = Annotated[
    int,
    typer.Option(
        callback=_known_row_floor,
        help=f"Fewest rows of a call on a GPU, one of {', '.join(map(str, ROW_FLOORS))}; shorter calls are padded. "
        "With 16, a byte and a draft are computed by the same kernels.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")]
WideOption = Annotated[bool, typer.Option("--wide", help="Print all columns, wider than 80 characters.")]


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str, kind: Callable[[str], N], most: int = TEXT_BYTES) -> list[N]:
    """Return the numbers in a comma-separated list, each once.

    Args:
        option: its name, for errors.
        text: as the user gave it; may be empty.
        kind: ``int`` or ``float``.
        most: largest one.

    Raises:
        UsageError: one of them is not a number greater than 0, or larger than ``most``.
    """
    found: dict[N, None] = {}
    for name in split_names(text):
        try:
            value = kind(name)
        except ValueError:
            value = kind("-1")
        if not 0 < value <= most:
            expected = "whole numbers" if kind is int else "numbers"
            raise UsageError(
                f"--{option}: found {name!r}, expected {expected} greater than 0 and at most {most}, comma-separated"
            )
        found[value] = None
    return list(found)


def joined(values: Iterable[object]) -> str:
    """Return values as a comma-separated list: the default of an option that `numbers` or `split_names` reads."""
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def complete_help(command: Any) -> None:
    """Put the texts that registries generate into the help of a command's options and arguments."""
    for parameter in command.params:
        for placeholder, text in _GENERATED.items():
            if placeholder in (getattr(parameter, "help", None) or ""):
                parameter.help = parameter.help.replace(placeholder, text())


def check_values(command: Any) -> None:
    """Make empty paths, which would be the current folder, and integers of more than 64 bits usage errors."""
    hints = get_type_hints(command.callback)
    for parameter in command.params:
        hint = hints.get(parameter.name)
        kinds = {hint, *get_args(hint), *(kind for part in get_args(hint) for kind in get_args(part))}
        parameter.process_value = partial(_checked_value, parameter, parameter.process_value, Path in kinds)


def _checked_value(parameter: Any, process: Callable[[Any, Any], Any], path: bool, context: Any, value: Any) -> Any:
    texts = value if isinstance(value, list | tuple) else (value,)
    if path and "" in texts:
        raise typer.BadParameter("found an empty path", ctx=context, param=parameter)
    found = process(context, value)
    if isinstance(found, int) and abs(found) >= 2**63:
        raise typer.BadParameter("found a number of more than 64 bits", ctx=context, param=parameter)
    return found
