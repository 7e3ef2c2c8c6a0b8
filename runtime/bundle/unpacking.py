"""Unpacks an archive of ``fastblt pack``: nothing is written before the sums, and a signature of them, are right."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.limits import SIGNATURE_BYTES, SUMS_BYTES
from fastblt.runtime.bundle.archive import SIGNATURE_FILE, SUMS_FILE, ArchiveError
from fastblt.runtime.bundle.manifest import MANIFEST_FILE
from fastblt.runtime.bundle.signature import SignatureError, verify
from fastblt.runtime.bundle.tar_reader import Member, TarError, TarReader, open_tar

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class UnpackedArchive:
    """Describes an archive that was unpacked."""

    names: list[str]
    """Files of the bundle."""
    signed: bool
    """Whether it has a signature, verified or not."""
    signer: str | None
    """Fingerprint of the key whose signature was verified; None: none was."""


def unpack(archive: Path, folder: Path, *, keys: Path | None = None) -> UnpackedArchive:
    """Unpack an archive atomically, and compare every file with its sum.

    Args:
        archive: file that `pack` wrote.
        folder: to make; must not exist, or be empty.
        keys: who may have signed it, see `verify`; None: a signature is not verified.

    Raises:
        ArchiveError: it is no archive of `pack`, a file differs from its sum, the folder is not empty, there is too
            little space, or with ``keys``, it has no signature of one of them.
        OSError: it cannot be read or written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(f"{folder}: exists, expected a new name or an empty folder")
    try:
        with open_tar(archive) as tar:
            return _Unpacking(archive, tar).unpack(folder, keys)
    except TarError as error:
        raise ArchiveError(f"{archive}: cannot be unpacked ({error}), expected one of fastblt pack") from error


class _Unpacking:
    def __init__(self, archive: Path, tar: TarReader) -> None:
        self.archive, self.tar = archive, tar
        members = tar.members(read={SUMS_FILE: SUMS_BYTES, SIGNATURE_FILE: SIGNATURE_BYTES})
        contents = {member.name: member.content for member in members if member.content is not None}
        self.members = {member.name: member for member in members if member.content is None}
        self.sums, self.signature = contents.get(SUMS_FILE), contents.get(SIGNATURE_FILE)

    def unpack(self, folder: Path, keys: Path | None) -> UnpackedArchive:
        if self.sums is None:
            raise ArchiveError(f"{self.archive}: found no {SUMS_FILE}, expected an archive that fastblt pack wrote")
        signer = None if keys is None else self._verify(self.sums, keys)
        sums = self._parse(self.sums)
        self._check_space(folder)
        with replacing_folder(folder) as new:
            for member in self.members.values():
                self._write(member, new, sums)
        return UnpackedArchive(list(self.members), self.signature is not None, signer)

    def _verify(self, content: bytes, keys: Path) -> str:
        if self.signature is None:
            raise ArchiveError(f"{self.archive}: found no signature, expected one (fastblt pack --sign makes it)")
        try:
            return verify(content, self.signature, keys)
        except SignatureError as error:
            raise ArchiveError(f"{self.archive}: not verified: {error}") from error

    def _parse(self, content: bytes) -> dict[str, str]:
        try:
            lines = [_LINE.fullmatch(line) for line in content.decode("utf-8").split("\n")[:-1]]
        except UnicodeDecodeError:
            lines = [None]
        sums = {line[2]: line[1] for line in lines if line is not None}
        if len(sums) != len(lines):
            raise ArchiveError(f"{self.archive}: {SUMS_FILE}: found other lines, expected a sum and a name in each")
        if odd := sorted(sums.keys() ^ self.members.keys()):
            names = ", ".join(odd[:8])
            raise ArchiveError(f"{self.archive}: found {names} in the archive or in {SUMS_FILE} alone, expected both")
        for name in self.members:
            above = next((str(path) for path in PurePosixPath(name).parents if str(path) in self.members), None)
            if above is not None:
                raise ArchiveError(f"{self.archive}: found {name!r} below the file {above!r}, expected a folder there")
        if MANIFEST_FILE not in sums:
            raise ArchiveError(f"{self.archive}: found no {MANIFEST_FILE}, expected an archive of a bundle")
        return sums

    def _check_space(self, folder: Path) -> None:
        parent = next(path for path in folder.absolute().parents if path.exists())
        needed, free = sum(member.size for member in self.members.values()), shutil.disk_usage(parent).free
        if needed > free:
            raise ArchiveError(
                f"{self.archive}: found {needed} bytes of files, expected at most {free}, free in {parent}"
            )

    def _write(self, member: Member, folder: Path, sums: Mapping[str, str]) -> None:
        path, digest = folder / member.name, hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for piece in self.tar.content(member):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != sums[member.name]:
            raise ArchiveError(
                f"{self.archive}: {member.name}: found sha256 {digest.hexdigest()}, expected {sums[member.name]}"
            )
