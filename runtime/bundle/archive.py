"""Packs a bundle with its engines into one tar archive to ship; the same content makes the same bytes.

Entries are sorted and carry no time, owner or mode of their own. ``SHA256SUMS`` comes last; after unpacking, by
``fastblt unpack`` or any tar, ``sha256sum -c SHA256SUMS`` checks all files.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from fastblt.models.atomic_folder import replacing_folder
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    check_engine,
    engine_folders,
    load_engine_folder,
)
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, sha256_of

SUMS_FILE = "SHA256SUMS"
ALL, NONE = "all", "none"


class ArchiveError(ValueError):
    """Reports an archive that cannot be written or unpacked."""


def contents(bundle: Path, engines: str = ALL) -> list[str]:
    """Return the names of the files of a bundle that go into an archive, checked against the manifests.

    Args:
        bundle: folder of the bundle.
        engines: ``all``, ``none``, or the name of one engine folder.

    Raises:
        BundleError: a file is missing or damaged.
        ConfigError: the configuration is invalid.
        ArchiveError: the bundle has no engine folder of that name.
    """
    names = [MANIFEST_FILE, *Bundle.open(bundle).manifest.files]
    folders = [path for path in engine_folders(bundle) if engines in (ALL, path.name)]
    if engines not in (ALL, NONE) and not folders:
        known = ", ".join(path.name for path in engine_folders(bundle)) or "none"
        raise ArchiveError(f"{bundle}: found engines {known}, expected {engines!r} among them")
    for path in folders if engines != NONE else []:
        folder = load_engine_folder(path)
        files = [ENGINES_FILE, *(check_engine(folder, engine).name for engine in folder.engines)]
        names += [f"{ENGINES_FOLDER}/{path.name}/{name}" for name in files]
    return sorted(names)


def pack(bundle: Path, archive: Path, engines: str = ALL) -> list[str]:
    """Write a bundle as an archive; ``.tar.gz`` and ``.tgz`` are compressed.

    Args:
        bundle: folder of the bundle.
        archive: file to write, atomically.
        engines: as in `contents`.

    Returns:
        The names of the files in it.

    Raises:
        BundleError: a file is missing or damaged.
        ConfigError: the configuration is invalid.
        ArchiveError: the bundle has no engine folder of that name.
        OSError: the archive cannot be written.
    """
    names = contents(bundle, engines)
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file, _compressed(file, archive) as out, tarfile.open(fileobj=out, mode="w|") as tar:
            sums = []
            for name in names:
                sums.append(f"{sha256_of(bundle / name)}  {name}\n")
                with (bundle / name).open("rb") as source:
                    tar.addfile(_entry(name, (bundle / name).stat().st_size), source)
            text = "".join(sums).encode()
            tar.addfile(_entry(SUMS_FILE, len(text)), io.BytesIO(text))
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)
    return [*names, SUMS_FILE]


@contextmanager
def _compressed(file: BinaryIO, archive: Path) -> Iterator[BinaryIO]:
    if not archive.name.endswith((".tar.gz", ".tgz")):
        yield file
        return
    # No name and no time in the header, or the bytes would differ each time.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as out:
        yield cast(BinaryIO, out)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    return entry


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack an archive atomically, and compare every file with its sum.

    Args:
        archive: file that `pack` wrote.
        folder: to make; must not exist, or be empty.

    Returns:
        The names of the files.

    Raises:
        ArchiveError: it is no archive of `pack`, a file differs from its sum, or the folder is not empty.
        OSError: it cannot be read or written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(f"{folder}: exists, expected a new name or an empty folder")
    with replacing_folder(folder) as new:
        try:
            with tarfile.open(archive) as tar:
                names = [_plain(archive, member) for member in tar]
                tar.extractall(new, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = str(error).partition(":\n")[0]  # tarfile continues with what each compression reports
            raise ArchiveError(f"{archive}: cannot be unpacked ({reason}), expected one of fastblt pack") from error
        _check_sums(archive, new, names)
        (new / SUMS_FILE).unlink()
    return names


def _plain(archive: Path, member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    if not member.isreg() or path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"{archive}: found {member.name!r}, expected plain files inside the folder")
    return member.name


def _check_sums(archive: Path, folder: Path, names: Sequence[str]) -> None:
    if SUMS_FILE not in names:
        raise ArchiveError(f"{archive}: found no {SUMS_FILE}, expected an archive that fastblt pack wrote")
    lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if set(sums) != set(names) - {SUMS_FILE}:
        odd = sorted(set(sums) ^ (set(names) - {SUMS_FILE}))
        raise ArchiveError(f"{archive}: found {', '.join(odd)} in the archive or in {SUMS_FILE} alone, expected both")
    for name, expected in sums.items():
        found = sha256_of(folder / name)
        if found != expected:
            raise ArchiveError(f"{archive}: {name}: found sha256 {found}, expected {expected}")
