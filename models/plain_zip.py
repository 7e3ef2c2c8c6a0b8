"""Checks zip archives of arrays, as torch.save and numpy.savez write them, before a library reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fastblt.models.limits import PICKLE_BYTES
from fastblt.models.reading import check_regular
from fastblt.models.shown import shown


def check_plain(path: Path) -> None:
    """Refuse what those never write and would be expensive to read: compressed members, a pickle of many megabytes.

    A file that is no zip archive is left to the library.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
        ValueError: it has such a member.
    """
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return
    for member in members:
        name = shown(member.filename)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"found compressed data in {name}, expected plain data")
        if member.filename.endswith(".pkl") and member.file_size > PICKLE_BYTES:
            raise ValueError(f"found {member.file_size} bytes in {name}, expected at most {PICKLE_BYTES}")
