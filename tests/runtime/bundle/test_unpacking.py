"""Archives that somebody made by hand to do harm: each ends in one error, soon, and nothing is written."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fastblt.models.limits import FILES
from fastblt.runtime.bundle.archive import SUMS_FILE, ArchiveError
from fastblt.runtime.bundle.unpacking import unpack

SECONDS = 2.0
"""Of processor time; the largest of these archives takes a fifth of it."""


class Entry(NamedTuple):
    """A member; what is None is what `pack` would write."""

    name: str
    content: bytes = b""
    kind: bytes = b"0"
    size: bytes | None = None
    checksum: bytes | None = None


def header(entry: Entry) -> bytes:
    block = bytearray(512)
    block[:100] = entry.name.encode().ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = f"{len(entry.content):011o}\0".encode() if entry.size is None else entry.size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = entry.kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = f"{sum(block):06o}\0 ".encode() if entry.checksum is None else entry.checksum
    return bytes(block)


def tar(*entries: Entry) -> bytes:
    blocks = [header(entry) + entry.content + bytes(-len(entry.content) % 512) for entry in entries]
    whole = b"".join(blocks) + bytes(1024)
    return whole + bytes(-len(whole) % 10240)


def sums(*entries: Entry) -> Entry:
    lines = [f"{hashlib.sha256(entry.content).hexdigest()}  {entry.name}\n" for entry in entries]
    return Entry(SUMS_FILE, "".join(lines).encode())


MANIFEST = Entry("manifest.json", b"{}")
GOOD = (MANIFEST, Entry("decoder.onnx", b"graph" * 300), Entry("engines/rtx-sm89/engines.json", b"{}"))


def archive(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "box.tar").write_bytes(content)
    return tmp_path / "box.tar"


def refused(path: Path, message: str) -> None:
    """Check that an archive ends in one error within the time, and that nothing is left."""
    begin = time.process_time()
    with pytest.raises(ArchiveError, match=message) as caught:
        unpack(path, path.parent / "out")
    assert time.process_time() - begin < SECONDS
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_archive_made_by_hand_is_unpacked(tmp_path: Path) -> None:
    found = unpack(archive(tmp_path, tar(*GOOD, sums(*GOOD))), tmp_path / "out")
    assert found.names == [entry.name for entry in GOOD]
    for entry in GOOD:
        assert (tmp_path / "out" / entry.name).read_bytes() == entry.content


def test_tarfile_writes_what_is_read(tmp_path: Path) -> None:
    """What it writes for long names and large files may change with its version."""
    long = [Entry(f"engines/{'x' * 100}/{'ä' * 20}", b"text"), MANIFEST]
    with tarfile.open(tmp_path / "box.tar", "w") as file:
        for entry in (*long, sums(*long)):
            info = tarfile.TarInfo(entry.name)
            info.size = len(entry.content)
            file.addfile(info, io.BytesIO(entry.content))
    assert unpack(tmp_path / "box.tar", tmp_path / "out").names == [entry.name for entry in long]


def test_tarfile_writes_sizes_of_8_gib_and_more_as_they_are_read(tmp_path: Path) -> None:
    large = tarfile.TarInfo("x")
    large.size = 9 * 2**30
    blocks = large.tobuf(tarfile.PAX_FORMAT)
    assert blocks[512:1024].rstrip(b"\0") == b"19 size=9663676416\n"
    refused(archive(tmp_path, blocks), "x: found 9663676416 bytes, expected at most the 0 that fit")


@pytest.mark.parametrize("cut", range(0, len(tar(*GOOD, sums(*GOOD))), 512))
def test_archive_that_was_cut_at_any_block_is_refused(tmp_path: Path, cut: int) -> None:
    refused(archive(tmp_path, tar(*GOOD, sums(*GOOD))[:cut]), "cannot be unpacked")


def pax(records: bytes) -> Entry:
    return Entry("././@PaxHeader", records, b"x")


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "quadratic extended header": (lambda: tar(pax(b"1" * 100_000), *GOOD), "extended header: found 100000 bytes"),
    "digits": (lambda: tar(pax(b"1" * 4096), *GOOD), "unknown extended header"),
    "record beyond the end": (lambda: tar(pax(b"99 path=x\n"), *GOOD), "unknown extended header"),
    "record of no length": (lambda: tar(pax(b"0 path=x\n"), *GOOD), "unknown extended header"),
    "negative size": (lambda: tar(pax(b"12 size=-10\n"), MANIFEST), "found the size '-10'"),
    "endless extensions": (lambda: tar(*[pax(b"")] * 1000), "unknown extended header"),
    "two extensions": (lambda: tar(pax(b"10 path=x\n"), pax(b"10 path=y\n"), MANIFEST), "expected plain files"),
    "sparse, GNU": (lambda: tar(Entry("x", b"", b"S")), "found 'x', expected plain files"),
    "sparse, PAX": (lambda: tar(pax(b"22 GNU.sparse.major=1\n"), MANIFEST), "unknown extended header"),
    "global header": (lambda: tar(Entry("x", b"10 path=y\n", b"g"), *GOOD), "found 'x', expected plain files"),
    "long name, GNU": (lambda: tar(Entry("././@LongLink", b"x" * 200, b"L")), "expected plain files"),
    "10 TB": (lambda: tar(Entry("x", size=b"\x80" + (10**13).to_bytes(11, "big"))), "found the number"),
    "8 GiB": (lambda: tar(Entry("x", size=b"77777777777\0")), "x: found 8589934591 bytes, expected at most the"),
    "10 TB, PAX": (lambda: tar(pax(b"23 size=10000000000000\n"), MANIFEST), "found 10000000000000 bytes"),
    "negative, base 256": (lambda: tar(Entry("x", size=b"\xff" * 12)), "found the number"),
    "signed octal": (lambda: tar(Entry("x", size=b"-0000000001\0")), "found the number"),
    "underscores": (lambda: tar(Entry("x", size=b"00000000_01\0")), "found the number"),
    "checksum": (lambda: tar(Entry("x", checksum=b"000001\0 ")), "found no tar header"),
    "old tar": (lambda: bytes(257) + b"x" + bytes(254) + bytes(10240), "found no tar header"),
    "many members": (
        lambda: tar(*(Entry(f"f{index}") for index in range(FILES + 1))),
        f"found more than {FILES} files",
    ),
    "symbolic link": (lambda: tar(Entry("x", b"", b"2")), "found 'x', expected plain files"),
    "hard link": (lambda: tar(Entry("x", b"", b"1")), "found 'x', expected plain files"),
    "device": (lambda: tar(Entry("x", b"", b"3")), "found 'x', expected plain files"),
    "pipe": (lambda: tar(Entry("x", b"", b"6")), "found 'x', expected plain files"),
    "folder": (lambda: tar(Entry("x/", b"", b"5")), "found 'x/', expected plain files"),
    "the same name twice": (lambda: tar(*GOOD, MANIFEST), "found manifest.json twice"),
    "the same file twice": (lambda: tar(Entry("a/./b"), MANIFEST), "found 'a/./b'"),
    "outside": (lambda: tar(Entry("../x")), "found '../x'"),
    "absolute": (lambda: tar(Entry("/x")), "found '/x'"),
    "deep": (lambda: tar(Entry("a/b/c/d")), "found 'a/b/c/d'"),
    "no name": (lambda: tar(Entry("")), "found '', expected plain files"),
    "backslash": (lambda: tar(Entry("a\\b")), "expected plain files"),
    "escape": (lambda: tar(Entry("a\x1b[31mb")), r"found 'a\\x1b\[31mb'"),
    "not UTF-8": (lambda: tar(MANIFEST).replace(b"manifest.json", b"manifest.\xff\xff\xff\xff"), "found no tar header"),
    "long name": (lambda: tar(pax(b"310 path=" + b"x" * 300 + b"\n"), MANIFEST), "expected plain files"),
    "file and folder": (lambda: tar(MANIFEST, Entry("a"), Entry("a/b"), sums(Entry("a"), Entry("a/b"), MANIFEST)), ""),
    "more after the end": (lambda: tar(*GOOD) + tar(*GOOD), "bytes after its last file"),
    "large sums": (lambda: tar(MANIFEST, Entry(SUMS_FILE, bytes(5 * 2**20))), "SHA256SUMS: found 5242880 bytes"),
    "sums that are not text": (lambda: tar(MANIFEST, Entry(SUMS_FILE, b"\xff\xfe\n")), "SHA256SUMS: found other lines"),
    "sums without a newline": (
        lambda: tar(MANIFEST, sums(MANIFEST)._replace(content=b"0" * 64)),
        "in SHA256SUMS alone",
    ),
    "wrong sum": (lambda: tar(MANIFEST, sums(MANIFEST._replace(content=b"x"))), "manifest.json: found sha256"),
    "bomb": (lambda: gzip.compress(header(Entry("x", size=b"77777777777\0")) + bytes(2**23)), "x: found 8589934591"),
    "bomb of zeros": (lambda: gzip.compress(bytes(2**24)), "bytes after its last file"),
    "gzip twice": (lambda: gzip.compress(tar(MANIFEST, sums(MANIFEST))) * 2, "after the compressed data"),
    "damaged gzip": (lambda: gzip.compress(tar(*GOOD))[:-8] + b"x" * 8, "found damaged compression"),
    "gzip of gzip": (lambda: gzip.compress(gzip.compress(tar(*GOOD))), "inside compressed data|end|no tar header"),
    "nothing": (lambda: b"", "found its end at 0 bytes"),
}


@pytest.mark.parametrize("what", [what for what in HOSTILE if what != "file and folder"])
def test_hostile_archive_is_one_error(tmp_path: Path, what: str) -> None:
    content, message = HOSTILE[what]
    refused(archive(tmp_path, content()), message)


def test_file_with_the_name_of_a_folder_is_one_error(tmp_path: Path) -> None:
    path = archive(tmp_path, HOSTILE["file and folder"][0]())
    with pytest.raises(ArchiveError, match="found 'a/b' below the file 'a', expected a folder there"):
        unpack(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_archive_larger_than_the_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Any = type("Usage", (), {"free": 1503})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(archive(tmp_path, tar(*GOOD, sums(*GOOD))), "found 1504 bytes of files, expected at most 1503, free in")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_one_error(tmp_path: Path, kind: str) -> None:
    path = Path(os.devnull) if kind == "device" else tmp_path / "box.tar"
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    with pytest.raises(OSError, match="expected a file"):
        unpack(path, tmp_path / "out")


def test_umask_holds_for_what_is_unpacked(tmp_path: Path) -> None:
    path, before = archive(tmp_path, tar(*GOOD, sums(*GOOD))), os.umask(0o077)
    try:
        unpack(path, tmp_path / "out")
    finally:
        os.umask(before)
    found = {each.stat().st_mode & 0o777 for each in (tmp_path / "out").rglob("*") if each.is_file()}
    assert found == {0o600}
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "out", tmp_path / "out" / "engines")} == {0o700}
