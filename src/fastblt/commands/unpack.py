"""``fastblt unpack``: unpacks an archive and checks its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.output import stderr, stdout
from fastblt.runtime.bundle.archive import unpack


def command(
    archive: Annotated[Path, typer.Argument(help="Archive that `fastblt pack` wrote.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make; new or empty.")],
) -> None:
    """Unpack an archive of `fastblt pack` and check its files.

    A damaged archive is refused as a whole: the folder appears when every file is right.
    """
    with stderr().status(f"unpacking {archive}"):
        names = unpack(archive, folder)
    stdout().print(f"{folder}: {len(names) - 1} files, all as they were packed", soft_wrap=True)
