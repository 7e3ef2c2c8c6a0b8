from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastblt.runtime.bundle import archive as archive_module
from fastblt.runtime.bundle.archive import SUMS_FILE, ArchiveError, contents, pack
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, sha256_of
from fastblt.runtime.bundle.unpacking import unpack


@pytest.fixture
def bundle(tiny_engines: Path, tmp_path: Path) -> Path:
    """Copy a bundle with one engine folder, which the test may change."""
    shutil.copytree(tiny_engines, tmp_path / "bundle")
    return tmp_path / "bundle"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["box.tar", "box.tar.gz", "box.tgz"])
def test_archive_is_the_same_when_packed_again_and_gives_the_same_files(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    first, second = tmp_path / "a" / name, tmp_path / "b" / name
    packed = pack(bundle, first)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    for path in copy.rglob("*"):
        path.touch()
    assert pack(copy, second) == packed
    assert first.read_bytes() == second.read_bytes()
    assert (packed.bytes, packed.sha256) == (first.stat().st_size, sha256_of(first))
    unpacked = unpack(first, tmp_path / "out")
    assert [*unpacked.names, SUMS_FILE] == packed.names
    assert (unpacked.signed, unpacked.signer) == (False, None)
    assert files_of(tmp_path / "out") == files_of(bundle)


def test_engines_can_be_chosen(bundle: Path) -> None:
    folder = next((bundle / "engines").iterdir()).name
    everything, named, none = (contents(bundle, engines) for engines in ("all", folder, "none"))
    assert everything == named
    assert set(everything) - set(none) == {name for name in everything if name.startswith(f"engines/{folder}/")}
    with pytest.raises(ArchiveError, match=rf"found engines {folder}, expected 'other' among them"):
        contents(bundle, "other")


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"a\xff", "a\u202eb".encode()])
def test_name_that_could_not_be_unpacked_is_refused(bundle: Path, tmp_path: Path, name: bytes) -> None:
    (folder,) = (bundle / "engines").iterdir()
    folder.rename(folder.with_name(os.fsdecode(name)))
    with pytest.raises(ArchiveError, match=r"found the name '.*', expected one that fits any system"):
        pack(bundle, tmp_path / "box.tar")
    assert not (tmp_path / "box.tar").exists()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sums_are_checked_by_common_tools_too(bundle: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "box.tar")
    with tarfile.open(tmp_path / "box.tar") as tar:
        tar.extractall(tmp_path / "out")  # what pack wrote; Python 3.11.2, which Debian has, knows no filter
    subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=tmp_path / "out", check=True)


@pytest.mark.parametrize("damaged", ["decoder.onnx", "engines"])
def test_damaged_bundle_is_refused_and_nothing_is_written(bundle: Path, tmp_path: Path, damaged: str) -> None:
    path = bundle / damaged
    path = next(path.rglob("decoder-*.engine")) if path.is_dir() else path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{path.name}: found \d+ bytes"):
        pack(bundle, tmp_path / "out" / "box.tar")
    assert not (tmp_path / "out").exists()


def rewrite(archive: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]) -> None:
    """Write an archive again with other entries."""
    with tarfile.open(archive) as tar:
        entries = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(archive, "w") as tar:
        for member, data in entries:
            changed = change(member, data)
            if changed is not None:
                member, data = changed
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "what", ["content", "missing", "added", "no sums", "no manifest", "sums", "outside", "absolute", "link"]
)
def test_archive_that_is_not_what_was_packed_is_refused(bundle: Path, tmp_path: Path, what: str) -> None:
    archive = tmp_path / "box.tar"
    pack(bundle, archive, "none")

    def change(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes] | None:
        if member.name == SUMS_FILE:
            lines = data.splitlines(keepends=True)
            if what == "no manifest":
                data = b"".join(line for line in lines if MANIFEST_FILE.encode() not in line)
            return None if what == "no sums" else (member, lines[0] + data if what == "sums" else data)
        if what == "no manifest" and member.name == MANIFEST_FILE:
            return None
        if member.name == "decoder.onnx":
            if what == "content":
                return member, data[:-1] + b"?"
            if what == "missing":
                return None
            if what == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                return member, b""
            names = {"added": "extra.onnx", "outside": "../extra.onnx", "absolute": "/extra.onnx"}
            member.name = names.get(what, member.name)
        return member, data

    rewrite(archive, change)
    message = {
        "content": "decoder.onnx: found sha256",
        "missing": "found decoder.onnx in the archive or in SHA256SUMS alone",
        "added": "found decoder.onnx, extra.onnx in the archive",
        "no sums": "found no SHA256SUMS",
        "no manifest": "found no manifest.json",
        "sums": "SHA256SUMS: found other lines",
    }.get(what, "expected plain files inside the folder")
    with pytest.raises(ArchiveError, match=message):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "extra.onnx").exists()


def test_names_and_sizes_that_need_an_extended_header_are_kept(bundle: Path, tmp_path: Path) -> None:
    """Names of more than 100 characters, or with other characters than ASCII's."""
    (folder,) = (bundle / "engines").iterdir()
    folder.rename(bundle / "engines" / ("ä" * 60 + "x" * 60))
    packed = pack(bundle, tmp_path / "box.tar")
    assert unpack(tmp_path / "box.tar", tmp_path / "out").names == packed.names[:-1]
    assert files_of(tmp_path / "out") == files_of(bundle)


@pytest.mark.parametrize(
    "where", ["box.tar", "manifest.json", "engines/box.tar", "new/box.tar", ".", "link", "folder/x"]
)
def test_archive_inside_the_bundle_is_refused(bundle: Path, tmp_path: Path, where: str) -> None:
    """Also through links: to a file of the bundle, and to its folder."""
    before = files_of(bundle)
    (tmp_path / "link").symlink_to(bundle / "manifest.json")
    (tmp_path / "folder").symlink_to(bundle)
    target = (tmp_path if where in ("link", "folder/x") else bundle) / where
    with pytest.raises(ArchiveError, match="found a path inside the bundle"):
        pack(bundle, target, "none")
    assert files_of(bundle) == before


def test_hard_link_to_a_file_of_the_bundle_is_replaced_and_the_file_stays(bundle: Path, tmp_path: Path) -> None:
    before = files_of(bundle)
    (tmp_path / "box.tar").hardlink_to(bundle / "manifest.json")
    pack(bundle, tmp_path / "box.tar", "none")
    assert files_of(bundle) == before


def test_file_that_changes_while_it_is_packed_is_noticed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*arguments: Any) -> dict[str, str]:
        found = contents(*arguments)
        path = bundle / "decoder.onnx"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        return found

    monkeypatch.setattr(archive_module, "contents", changed)
    with pytest.raises(BundleError, match=r"decoder\.onnx: changed while it was packed: found sha256"):
        pack(bundle, tmp_path / "box.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_what_a_killed_pack_left_is_removed_by_the_next(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an earlier archive stays until then."""
    pack(bundle, tmp_path / "box.tar", "none")
    before = (tmp_path / "box.tar").read_bytes()
    process = os.fork()
    if process == 0:
        monkeypatch.setattr(archive_module, "_compressing", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        pack(bundle, tmp_path / "box.tar")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.glob(".box.tar.*"))) == 1
    assert (tmp_path / "box.tar").read_bytes() == before
    pack(bundle, tmp_path / "box.tar", "none")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "box.tar"}


@pytest.mark.parametrize("name", ["box.tar", "box.tar.gz"])
def test_archive_that_was_cut_is_one_error(bundle: Path, tmp_path: Path, name: str) -> None:
    pack(bundle, tmp_path / name, "none")
    whole = (tmp_path / name).read_bytes()
    for size in (0, 2, len(whole) // 3, len(whole) - 512, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ArchiveError, match=f"{name}: cannot be unpacked"):
            unpack(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_that_is_no_archive_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "box.tar").write_bytes(b"not an archive")
    with pytest.raises(ArchiveError, match=r"box\.tar: cannot be unpacked"):
        unpack(tmp_path / "box.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_with_something_in_it_is_refused(bundle: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "box.tar")
    with pytest.raises(ArchiveError, match="exists, expected a new name or an empty folder"):
        unpack(tmp_path / "box.tar", bundle)
