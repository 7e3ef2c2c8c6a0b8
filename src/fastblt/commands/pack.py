"""``fastblt pack``: writes a bundle to one archive."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checks import check_bundle, check_file_target
from fastblt.commands.options import BundleArgument
from fastblt.commands.output import megabytes, stderr, stdout
from fastblt.models.atomic_file import standard_stream
from fastblt.runtime.bundle.archive import ALL, pack


def command(
    bundle: BundleArgument,
    archive: Annotated[
        Path | None, typer.Argument(help="File to write; .tar.gz is compressed  [default: BUNDLE.tar]")
    ] = None,
    engines: Annotated[
        str, typer.Option(help="Engines to include: all, none, or the name of one folder in BUNDLE/engines.")
    ] = ALL,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="SSH key to sign with; of a public key, the private one in the agent."),
    ] = None,
) -> None:
    """Write a bundle and its engines to one archive.

    The same content always yields the same archive, byte for byte; SHA256SUMS inside lists the digest of every file.
    """
    target = archive or Path(f"{bundle.resolve().name}.tar")
    check_bundle(bundle)
    check_file_target(target)
    # ssh-keygen may ask for a passphrase, on the line that a status would be drawn on.
    with stderr().status(f"packing {bundle}") if sign is None else nullcontext():
        packed = pack(bundle, target, engines, key=sign)
    signed = "" if sign is None else ", signed"
    # Where the archive itself goes to the standard output, nothing else may.
    console = stdout() if standard_stream(target) is None else stderr()
    console.print(
        f"{target}: {len(packed.names)} files, {megabytes(packed.bytes)} MB{signed}, sha256 {packed.sha256}",
        soft_wrap=True,
    )
