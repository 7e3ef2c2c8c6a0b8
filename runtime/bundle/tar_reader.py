"""Lists the members of an archive that ``fastblt pack`` wrote: plain files in a POSIX tar, and nothing else.

Python's tarfile reads many more kinds of archive, and versions before 3.11.10 take quadratic time for some headers
(CVE-2024-6232). What is read here is bounded: a header is one block, a name or size that does not fit it is one
extended header of at most `_EXTENSION_BYTES`, and every other kind of member is refused.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from fastblt.models.limits import FILE_BYTES, FILES, NAME_CHARACTERS
from fastblt.models.reading import open_regular

_BLOCK = 512
_RECORD = 20 * _BLOCK
"""An archive is filled up with zeros to a multiple of this."""
_PIECE = 2**20
_EXTENSION_BYTES = 4_096
"""A name has at most 3 parts of 255 characters."""
_MAGIC = b"ustar\x0000"
_FILE, _EXTENSION = b"0", b"x"
_NUMBER = re.compile(rb"([0-7]{1,11})[ \0]*")
_GZIP = b"\x1f\x8b"
_LARGEST_RATIO = 1_032
"""DEFLATE makes at most this many bytes of one."""


class TarError(ValueError):
    """Reports a file that is not an archive of ``fastblt pack``."""


@dataclass(frozen=True)
class Member:
    """Describes a file in an archive."""

    name: str
    """Relative, with slashes; every part is a plain name."""
    offset: int
    """Of its content, in the archive without compression."""
    size: int
    content: bytes | None = None
    """Of members that `TarReader.members` was asked to read."""


class TarReader:
    """Reads one archive, compressed with gzip or not.

    Args:
        file: the archive; regular, so that it can be read twice.
        size: of the file, in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._compressed = file.read(2) == _GZIP
        self._most = size * _LARGEST_RATIO if self._compressed else size
        self._begin()

    def members(self, read: Mapping[str, int]) -> list[Member]:
        """Return all members, in order; what they contain is passed over.

        Args:
            read: members whose content is read on the way, by name, with the most bytes that each may have.

        Raises:
            TarError: it is no archive of plain files, is cut, or has more or larger files than `limits` allows.
        """
        self._begin()
        found: dict[str, Member] = {}
        longer: dict[str, str] = {}
        while (header := self._read(_BLOCK)) != bytes(_BLOCK):
            kind, name, size = _parse_header(header)
            if kind == _EXTENSION and not longer:
                longer = _parse_extension(self._read_padded("extended header", size, _EXTENSION_BYTES))
                continue
            member = Member(longer.get("path", name), self._position, _size(longer.get("size"), size))
            longer = {}
            if kind != _FILE or not is_plain(member.name):
                raise TarError(f"found {member.name!r:.80}, expected plain files inside the folder")
            if member.name in found:
                raise TarError(f"found {member.name} twice, expected it once")
            self._check_sizes(member, len(found))
            if member.name in read:
                content = self._read_padded(member.name, member.size, read[member.name])
                member = replace(member, content=content)
            else:
                self._skip(member.size + -member.size % _BLOCK)
            found[member.name] = member
        self._check_end()
        return list(found.values())

    def content(self, member: Member) -> Iterator[bytes]:
        """Yield the content of a member in pieces; fastest in the order of the archive.

        Raises:
            TarError: the archive is cut or damaged there.
        """
        if member.offset < self._position:
            self._begin()
        self._skip(member.offset - self._position)
        left = member.size
        while left:
            piece = self._read(min(left, _PIECE))
            left -= len(piece)
            yield piece

    def _begin(self) -> None:
        self._file.seek(0)
        self._position = 0
        self._source: _Source = _Gunzip(self._file) if self._compressed else self._file

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise TarError(f"found its end at {self._position + len(data)} bytes, expected more")
        self._position += size
        return data

    def _skip(self, size: int) -> None:
        if not self._compressed:
            self._file.seek(size, 1)
            self._position += size
            return
        while size:
            size -= len(self._read(min(size, _PIECE)))

    def _read_padded(self, what: str, size: int, most: int) -> bytes:
        if size > most:
            raise TarError(f"{what}: found {size} bytes, expected at most {most}")
        return self._read(size + -size % _BLOCK)[:size]

    def _check_sizes(self, member: Member, count: int) -> None:
        if count >= FILES:
            raise TarError(f"found more than {FILES} files, expected at most as many")
        most = min(FILE_BYTES, self._most - self._position)
        if member.size > most:
            raise TarError(f"{member.name}: found {member.size} bytes, expected at most the {max(most, 0)} that fit")

    def _check_end(self) -> None:
        """Check that an archive ends as it should, so that one that was cut is recognized anywhere."""
        rest = self._source.read(_RECORD + 1)
        if any(rest) or not _BLOCK <= len(rest) <= _RECORD or (self._position + len(rest)) % _RECORD:
            raise TarError(f"found {len(rest)} bytes after its last file, expected zeros to a multiple of {_RECORD}")


@contextmanager
def open_tar(path: Path) -> Iterator[TarReader]:
    """Open an archive.

    Raises:
        OSError: it cannot be read, or is no regular file.
        TarError: it is not one of ``fastblt pack``; reading it raises the same.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        yield TarReader(file, size)


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Gunzip:
    """Decompresses a gzip file of one member, never more than is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zlib.decompressobj(wbits=31)

    def read(self, size: int) -> bytes:
        pieces = []
        while size and not self._decompressor.eof:
            data = self._decompressor.unconsumed_tail or self._file.read(2**16)
            try:
                piece = self._decompressor.decompress(data, size)
            except zlib.error as error:
                raise TarError(f"found damaged compression ({error}), expected gzip") from error
            if not data and not piece:
                raise TarError("found the end of the file inside compressed data, expected more")
            size -= len(piece)
            pieces.append(piece)
        if self._decompressor.eof and (self._decompressor.unused_data or self._file.read(1)):
            raise TarError("found something after the compressed data, expected nothing")
        return b"".join(pieces)


def _parse_header(block: bytes) -> tuple[bytes, str, int]:
    """Return kind, name and size of a member."""
    sum_of_bytes = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if block[257:265] != _MAGIC or _number(block[148:156]) != sum_of_bytes:
        raise TarError("found no tar header, expected a POSIX tar, compressed with gzip or not")
    name, prefix = (field.partition(b"\0")[0] for field in (block[:100], block[345:500]))
    return block[156:157], _text(prefix + b"/" + name if prefix else name), _number(block[124:136])


def _parse_extension(data: bytes) -> dict[str, str]:
    """Return the records of an extended header: the length of a record, a space, its key, ``=``, its value, a newline.

    ``fastblt pack`` needs one for names that are long or not ASCII and for files of 8 GiB or more.
    """
    records: dict[str, str] = {}
    while data or not records:
        digits = re.match(rb"([1-9][0-9]{0,3}) ", data)
        length = int(digits[1]) if digits else 0
        key, equals, value = data[digits.end() if digits else 0 : length].partition(b"=")
        if length > len(data) or not equals or key not in (b"path", b"size") or value[-1:] != b"\n":
            raise TarError("found an unknown extended header, expected a name or a size")
        records[key.decode()] = _text(value[:-1])
        data = data[length:]
    return records


def _size(extended: str | None, size: int) -> int:
    if extended is None:
        return size
    if not re.fullmatch("[0-9]{1,16}", extended, re.ASCII):
        raise TarError(f"found the size {extended!r:.80}, expected a number of bytes")
    return int(extended)


def _number(field: bytes) -> int:
    found = _NUMBER.fullmatch(field)
    if found is None:
        raise TarError(f"found the number {field!r}, expected octal digits")
    return int(found[1], 8)


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise TarError(f"found the name {raw!r:.80}, expected UTF-8") from None


def is_plain(name: str) -> bool:
    """Return whether a name stays inside the folder on every system, and can be printed."""
    parts = name.split("/")
    return (
        name.isprintable()
        and "\\" not in name
        and not any(part in ("", ".", "..") or len(part) > NAME_CHARACTERS for part in parts)
        and len(parts) <= 3
        and Path(name).parts == tuple(parts)
    )
