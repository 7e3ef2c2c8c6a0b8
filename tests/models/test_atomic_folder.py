from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from fastblt.models import atomic_folder
from fastblt.models.atomic_folder import replacing_folder, scratch_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    with replacing_folder(folder) as new:
        (new / text).write_text(text)


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rename as Linux does, and as systems do that cannot swap two names."""
    if request.param == "two steps":
        monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    return str(request.param)


def test_folder_is_replaced_and_nothing_is_left(tmp_path: Path, steps: str) -> None:
    fill(tmp_path / "folder", "old")
    fill(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


def test_folder_is_replaced_in_one_step_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "folder", "old")
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("renamed in two steps"))
    fill(tmp_path / "folder", "new")


def test_new_folder_has_what_the_umask_leaves_and_a_replaced_one_keeps_its_permissions(
    tmp_path: Path, steps: str
) -> None:
    before = os.umask(0o027)
    try:
        fill(tmp_path / "new", "new")
        (tmp_path / "old").mkdir()
        (tmp_path / "old").chmod(0o705)
        fill(tmp_path / "old", "new")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o750, 0o705]
    assert stat.S_IMODE((tmp_path / "new" / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_failing_disk_is_one_error_with_the_name_and_the_old_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = tmp_path / "folder"
    fill(folder, "old")
    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    real, calls = getattr(os, failing), 0

    def fail(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if failing == "rename" and calls != 2:  # the second of the two renames; the third undoes the first
            real(*arguments)
            return
        raise OSError(errno.EIO, "Input/output error", *arguments[:1] if failing == "rename" else ())

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=f"Input/output error: '{folder}"):
        fill(folder, "new")
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["old"]


@pytest.mark.parametrize(("step", "found"), [(1, ["old"]), (2, ["new"])])
def test_interrupt_between_two_steps_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, found: list[str]
) -> None:
    """A signal arrives when a call has done its work and before the next begins."""
    folder = tmp_path / "folder"
    fill(folder, "old")
    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    rename, calls = os.rename, 0

    def interrupted(*names: str) -> None:
        nonlocal calls
        calls += 1
        rename(*names)
        if calls == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(folder, "new")
    assert names(folder) == found


def test_interrupt_while_intermediate_files_are_deleted_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree, calls = shutil.rmtree, 0

    def interrupted(path: Path, **options: bool) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system does not list a process's open files")
def test_interrupt_of_the_work_closes_what_the_writer_holds(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert len(os.listdir("/dev/fd")) == before


def test_interrupt_just_after_a_leftover_is_closed_ends_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.13, `shutil.rmtree` then closes the folder again, and that error takes the interrupt's place."""
    (tmp_path / ".out.fastblt-0123456789abcdef.partial").mkdir()

    def closed_twice(path: Path, **options: bool) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(shutil, "rmtree", closed_twice)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", "new")
    assert not (tmp_path / "out").exists()


def test_folder_that_was_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".folder.fastblt-abcd1234.old"
    fill(old, "old")
    (tmp_path / ".folder.fastblt-abcd1234.partial").mkdir()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "folder"):
        raise KeyError
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_file_in_place_of_a_folder_is_one_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotADirectoryError, match="file"):
        fill(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "text"


def test_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "target", "old")
    (tmp_path / "link").symlink_to("target")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "target") == ["new"]


def test_intermediate_files_are_deleted_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), scratch_folder(tmp_path / "out") as folder:
        folder.write_text("text")
    assert names(tmp_path) == []
    with scratch_folder() as folder:
        assert folder.is_dir()
    assert not folder.exists()
