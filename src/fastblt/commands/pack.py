"""``fastblt pack`` and ``unpack``: a bundle as one file, for a box."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fastblt.runtime.bundle.archive import pack, unpack
from fastblt.runtime.bundle.manifest import sha256_of


def run_pack(bundle: Path, archive: Path | None, engines: str) -> None:
    """Write an archive, and print its sum.

    Raises:
        ValueError: the bundle is damaged, or has no such engines.
        OSError: the archive cannot be written.
    """
    target = archive or Path(f"{bundle.resolve().name}.tar")
    console = Console(highlight=False)
    with Console(stderr=True).status(f"packing {bundle}"):
        names = pack(bundle, target, engines)
        digest = sha256_of(target)
    size = target.stat().st_size / 1e6
    console.print(f"{target}: {len(names)} files, {size:.1f} MB, sha256 {digest}", soft_wrap=True)


def run_unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive, every file checked.

    Raises:
        ValueError: it is damaged, or the folder is not empty.
        OSError: it cannot be read or written.
    """
    names = unpack(archive, folder)
    Console(highlight=False).print(f"{folder}: {len(names) - 1} files, all as they were packed", soft_wrap=True)
