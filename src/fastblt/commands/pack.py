"""``fastblt pack``: writes a bundle to one archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checks import check_bundle, check_file_target
from fastblt.commands.options import BundleArgument
from fastblt.commands.output import megabytes, stderr, stdout
from fastblt.runtime.bundle.archive import ALL, pack
from fastblt.runtime.bundle.manifest import sha256_of


def command(
    bundle: BundleArgument,
    archive: Annotated[
        Path | None, typer.Argument(help="File to write; .tar.gz is compressed  [default: BUNDLE.tar]")
    ] = None,
    engines: Annotated[
        str, typer.Option(help="Engines to include: all, none, or the name of one folder in BUNDLE/engines.")
    ] = ALL,
) -> None:
    """Write a bundle and its engines to one archive.

    The same content always yields the same archive, byte for byte; SHA256SUMS inside lists the digest of every file.
    """
    target = archive or Path(f"{bundle.resolve().name}.tar")
    check_bundle(bundle)
    check_file_target(target)
    with stderr().status(f"packing {bundle}"):
        names = pack(bundle, target, engines)
        digest = sha256_of(target)
    size = megabytes(target.stat().st_size)
    stdout().print(f"{target}: {len(names)} files, {size} MB, sha256 {digest}", soft_wrap=True)
