"""Packs a bundle with its engines into one tar archive to ship; the same content makes the same bytes.

Entries are sorted and carry no time, owner or mode of their own. ``SHA256SUMS`` comes after them, and last, in a
signed archive, its signature ``SHA256SUMS.sig``; after unpacking, by ``fastblt unpack`` or any tar, ``sha256sum -c
SHA256SUMS`` checks all files.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastblt.models.atomic_file import replacing_file
from fastblt.models.limits import FILES
from fastblt.models.reading import open_regular
from fastblt.models.shown import shown
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    check_engine,
    engine_folders,
    load_engine_folder,
)
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, sha256_of
from fastblt.runtime.bundle.signature import sign
from fastblt.runtime.bundle.tar_reader import is_plain

SUMS_FILE, SIGNATURE_FILE = "SHA256SUMS", "SHA256SUMS.sig"
ALL, NONE = "all", "none"
_PIECE = 2**20
"""Bytes that are copied at once."""


class ArchiveError(ValueError):
    """Reports an archive that cannot be written or unpacked."""


@dataclass(frozen=True)
class PackedArchive:
    """Describes an archive that was written."""

    names: list[str]
    """Files in it, in order."""
    bytes: int
    sha256: str


def contents(bundle: Path, engines: str = ALL) -> dict[str, str]:
    """Return the files of a bundle that go into an archive, checked against the manifests, and their digests.

    Args:
        bundle: folder of the bundle.
        engines: ``all``, ``none``, or the name of one engine folder.

    Returns:
        sha256 by name, in the order of the archive.

    Raises:
        BundleError: a file is missing or damaged.
        ConfigError: the configuration is invalid.
        ArchiveError: the bundle has no engine folder of that name, or names that archives cannot have.
    """
    manifest = Bundle.open(bundle).manifest
    digests = {name: str(entry["sha256"]) for name, entry in manifest.files.items()}
    digests[MANIFEST_FILE] = sha256_of(bundle / MANIFEST_FILE)
    folders = [path for path in engine_folders(bundle) if engines in (ALL, path.name)]
    if engines not in (ALL, NONE) and not folders:
        known = ", ".join(path.name for path in engine_folders(bundle)) or "none"
        raise ArchiveError(f"{bundle}: found engines {known}, expected {engines!r} among them")
    for path in folders if engines != NONE else []:
        folder = load_engine_folder(path)
        prefix = f"{ENGINES_FOLDER}/{path.name}"
        digests |= {f"{prefix}/{check_engine(folder, engine).name}": engine.sha256 for engine in folder.engines}
        digests[f"{prefix}/{ENGINES_FILE}"] = sha256_of(path / ENGINES_FILE)
    _check_names(bundle, digests)
    return dict(sorted(digests.items()))


def _check_names(bundle: Path, names: Collection[str]) -> None:
    """Refuse what could not be unpacked again."""
    for name in names:
        if name in (SUMS_FILE, SIGNATURE_FILE):
            raise ArchiveError(f"{bundle / name}: found in a bundle, expected another name: archives use it")
        if not is_plain(name):
            raise ArchiveError(f"{bundle}: found the name {shown(name)}, expected one that fits any system")
    if len(names) + 2 > FILES:
        raise ArchiveError(f"{bundle}: found {len(names)} files, expected at most {FILES - 2} in an archive")


def pack(bundle: Path, archive: Path, engines: str = ALL, *, key: Path | None = None) -> PackedArchive:
    """Write a bundle as an archive; ``.tar.gz`` and ``.tgz`` are compressed.

    Args:
        bundle: folder of the bundle.
        archive: file to write, atomically; outside the bundle.
        engines: as in `contents`.
        key: SSH key to sign the sums with, see `sign`.

    Raises:
        BundleError: a file is missing or damaged, or changes meanwhile.
        ConfigError: the configuration is invalid.
        ArchiveError: the bundle has no engine folder of that name, or the archive is inside the bundle.
        SignatureError: the key cannot sign.
        OSError: the archive cannot be written.
    """
    _check_outside(bundle, archive)
    digests = contents(bundle, engines)
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()
    appended = {SUMS_FILE: sums}
    if key is not None:
        appended[SIGNATURE_FILE] = sign(sums, key)
    with replacing_file(archive) as file:
        out = _Measured(file, archive)
        _write_tar(out, _is_compressed(archive), bundle, digests, appended)
    return PackedArchive([*digests, *appended], out.bytes, out.digest.hexdigest())


def _check_outside(bundle: Path, archive: Path) -> None:
    """Refuse to write into the bundle, whatever links are on the way: what is unknown there makes it a damaged one."""
    inside = Path(os.path.realpath(bundle))
    target = Path(os.path.realpath(archive))
    if inside == target or inside in target.parents:
        raise ArchiveError(f"{archive}: found a path inside the bundle {bundle}, expected one outside")


def _write_tar(
    out: _Measured, compressed: bool, bundle: Path, digests: Mapping[str, str], appended: Mapping[str, bytes]
) -> None:
    with (
        _compressing(out, compressed) as stream,
        tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_PIECE) as tar,
    ):
        for name, digest in digests.items():
            _add_file(tar, name, bundle / name, digest)
        for name, content in appended.items():
            tar.addfile(_entry(name, len(content)), io.BytesIO(content))


def _add_file(tar: tarfile.TarFile, name: str, path: Path, digest: str) -> None:
    with open_regular(path) as file:
        source = _Measured(file, path)
        size = os.fstat(file.fileno()).st_size
        tar.addfile(_entry(name, size), cast(BinaryIO, source))
    found = source.digest.hexdigest()
    if found != digest:
        raise BundleError(f"{path}: changed while it was packed: found sha256 {found}, expected {digest}")


def _is_compressed(archive: Path) -> bool:
    return archive.name.endswith((".tar.gz", ".tgz"))


@contextmanager
def _compressing(out: _Measured, compressed: bool) -> Iterator[BinaryIO]:
    if not compressed:
        yield cast(BinaryIO, out)
        return
    # No name and no time in the header, or the bytes would differ each time.
    with gzip.GzipFile(filename="", mode="wb", fileobj=cast(BinaryIO, out), mtime=0, compresslevel=6) as stream:
        yield cast(BinaryIO, stream)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    return entry


class _Measured:
    """Counts and digests what is read from, or written to, a file; errors name its path."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.bytes = 0
        self.digest: Any = hashlib.sha256()

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._add(data)
        return data

    def write(self, data: bytes) -> int:
        self._add(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self.bytes

    def flush(self) -> None:
        """Do nothing more: `replacing_file` flushes."""

    def _add(self, data: bytes) -> None:
        self.bytes += len(data)
        self.digest.update(data)
