"""``--polygraphy DIR`` of ``export`` and ``verify``: calls of every graph as files for NVIDIA's Polygraphy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checks import check_new_folder
from fastblt.commands.output import stderr, stdout
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.bundle.target import TargetError
from fastblt.runtime.measure.verify.polygraphy_files import PROMPT_BYTES, README, write_polygraphy_files
from fastblt.runtime.measure.verify.tolerance import require_polygraphy

PolygraphyOption = Annotated[
    Path | None,
    typer.Option(
        "--polygraphy",
        metavar="FOLDER",
        help="Write calls of every graph to this new folder, inputs and outputs, for polygraphy run and polygraphy "
        "debug, and print their command lines.",
    ),
]


def check_polygraphy_target(folder: Path | None, bundle: Path) -> None:
    """Check that Polygraphy is installed and that its files can be written; None is fine.

    Raises:
        ModuleNotFoundError: Polygraphy is not installed.
        TargetError: the folder has content, is in the bundle or around it, or cannot be made.
    """
    if folder is None:
        return
    require_polygraphy()
    check_new_folder(folder)
    ours, theirs = Path(os.path.realpath(folder)), Path(os.path.realpath(bundle))
    if ours.is_relative_to(theirs):
        raise TargetError(
            f"{folder}: found a folder in the bundle, expected another: a bundle with files that its manifest does "
            "not list counts as damaged"
        )
    if theirs.is_relative_to(ours):
        raise TargetError(f"{folder}: found the folder that the bundle is in, expected another: it is replaced")


def write_polygraphy(bundle: Path, folder: Path | None) -> None:
    """Write the files and print a command line for each graph and what can run it; None: do nothing."""
    if folder is None:
        return
    check_polygraphy_target(folder, bundle)  # an export before this took its time
    with stderr().status("generating for Polygraphy"):
        calls = write_polygraphy_files(bundle, folder, heldout_prompts(1, PROMPT_BYTES)[0], emulate)
    console = stdout()
    console.print(f"{folder}: {len(calls)} calls for Polygraphy; {README} describes them", soft_wrap=True)
    widest = {call.part: call for call in calls}  # of several rows, where there are such calls
    for call in widest.values():
        for line in call.commands(shlex.quote(str(bundle)), str(folder)):
            console.print(line, soft_wrap=True)


def emulate(bundle: Path, twin: Path) -> None:
    """Write a bf16 bundle's twin that CPUs run; needs the packages of the ``export`` extra."""
    from fastblt.export.emulation import emulate_bf16

    emulate_bf16(bundle, twin)
