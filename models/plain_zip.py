"""Checks zip archives of arrays, as torch.save and numpy.savez write them, before a library reads them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from fastblt.models.limits import PICKLE_BYTES, ZIP_DIRECTORY_BYTES
from fastblt.models.reading import check_regular
from fastblt.models.shown import shown


class _File(io.FileIO):
    """Refuses to read a directory of members that is too large: zipfile reads it in one call."""

    def read(self, size: int | None = -1) -> bytes:
        """Read as usual."""
        if size is not None and size > ZIP_DIRECTORY_BYTES:
            raise ValueError(f"found a directory of {size} bytes, expected at most {ZIP_DIRECTORY_BYTES}")
        return super().read(size)


def check_plain(path: Path) -> None:
    """Refuse what those never write and would be expensive to read.

    That is compressed members, a pickle of many megabytes, and hundreds of thousands of members.

    A file that is no zip archive is left to the library.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
        ValueError: it has something of these.
    """
    check_regular(path)
    try:
        with _File(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return
    for member in members:
        name = shown(member.filename)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"found compressed data in {name}, expected plain data")
        if member.filename.endswith(".pkl") and member.file_size > PICKLE_BYTES:
            raise ValueError(f"found {member.file_size} bytes in {name}, expected at most {PICKLE_BYTES}")
