"""``fastblt unpack``: unpacks an archive and checks its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.output import stderr, stdout
from fastblt.runtime.bundle.unpacking import unpack


def command(
    archive: Annotated[Path, typer.Argument(help="Archive that `fastblt pack` wrote.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make; new or empty.")],
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYS", help="Unpack only what one of these public SSH keys signed; or allowed signers of OpenSSH."
        ),
    ] = None,
) -> None:
    """Unpack an archive of `fastblt pack` and check its files.

    A damaged archive is refused as a whole: the folder appears when every file is right.
    """
    with stderr().status(f"unpacking {archive}"):
        unpacked = unpack(archive, folder, keys=verify)
    signature = ""
    if unpacked.signer is not None:
        signature = f", signed by the key {unpacked.signer}"
    elif unpacked.signed:
        signature = "; the signature was not verified (--verify KEYS)"
    stdout().print(f"{folder}: {len(unpacked.names)} files, all as they were packed{signature}", soft_wrap=True)
