"""Writes tar archives header by header, so that any field can be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_BLOCK, _RECORD = 512, 10_240
#: Offset and width of each field of a header, in bytes.
_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "chksum": (148, 8),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
}


@dataclass(frozen=True)
class Member:
    """Describes one member."""

    name: str
    data: bytes = b""
    type: str = "0"
    size: int | None = None
    """What the header claims; None: the truth."""
    mode: str = "0000644"
    link: str = ""
    pax: str = ""
    """Content of a pax header in front of it; empty: there is none."""
    fields: dict[str, str] = field(default_factory=dict)
    """Bytes of header fields, hexadecimal, after the sum was computed."""
    times: int = 1

    @classmethod
    def of(cls, recipe: dict[str, Any]) -> Member:
        """Return the member that a recipe describes."""
        known = {key: value for key, value in recipe.items() if key != "text"}
        return cls(data=str(recipe.get("text", "")).encode(), **known)


def tar_bytes(members: list[Member]) -> bytes:
    """Return an archive; without strange members it is what `fastblt pack` writes."""
    data = b"".join(_member(member) * member.times for member in members) + bytes(2 * _BLOCK)
    return data + bytes(-len(data) % _RECORD)


def _member(member: Member) -> bytes:
    pax = member.pax.encode()
    front = _entry(Member("pax", pax, "x")) if pax else b""
    return front + _entry(member)


def _entry(member: Member) -> bytes:
    size = len(member.data) if member.size is None else member.size
    header = bytearray(_BLOCK)
    values = {
        "name": member.name.encode(errors="surrogateescape"),
        "mode": member.mode.encode(),
        "uid": b"0000000",
        "gid": b"0000000",
        "size": b"%011o" % size if 0 <= size < 8**11 else b"\x80" + (size % 2**88).to_bytes(11, "big"),
        "mtime": b"00000000000",
        "type": member.type.encode(),
        "link": member.link.encode(),
        "magic": b"ustar\00000",
    }
    for name, value in values.items():
        _put(header, name, value)
    _put(header, "chksum", b" " * 8)
    _put(header, "chksum", b"%06o\0 " % sum(header))
    for name, value in member.fields.items():
        _put(header, name, bytes.fromhex(value))
    return bytes(header) + member.data + bytes(-len(member.data) % _BLOCK)


def _put(header: bytearray, name: str, value: bytes) -> None:
    start, width = _FIELDS[name]
    header[start : start + width] = value[:width].ljust(width, b"\0")
