from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fastblt.models.atomic_file import current_umask, replacing_file, write_file
from fastblt.models.atomic_partial import remove_leftovers

# Makes partials in the ways of files and of folders, reports that they are there, and waits to be killed.
WRITER = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from fastblt.models.atomic_file import replacing_file
from fastblt.models.atomic_folder import replacing_folder, scratch_folder
with ExitStack() as stack:
    stack.enter_context(replacing_file(Path("file"))).write(b"half")
    (stack.enter_context(replacing_folder(Path("folder"))) / "half").write_text("half")
    (stack.enter_context(scratch_folder(Path("folder"))) / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def umask() -> Any:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_umask_holds_for_new_files_and_a_replaced_one_keeps_its_permissions(tmp_path: Path, umask: int) -> None:
    assert current_umask() == umask
    new, old = tmp_path / "deep" / "new", tmp_path / "old"
    old.write_text("old")
    old.chmod(0o604)
    for path in (new, old):
        write_file(path, "text")
        assert path.read_text() == "text"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new, old)] == [0o640, 0o604]


def test_failure_in_the_body_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), replacing_file(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_failing_disk_is_one_error_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, number: int
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(next(tmp_path.glob(".*"))) if failing == "replace" else None)

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=re.escape(f"{os.strerror(number)}: '{path}'")) as caught:
        write_file(path, "new")
    assert caught.value.errno == number
    assert path.read_text() == "old"
    assert hidden(tmp_path) == []


def test_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), replacing_file(tmp_path / "file"):
        (tmp_path / "source").read_text()


@pytest.mark.parametrize("exists", [True, False])
def test_link_stays_and_its_target_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "target"
    link.symlink_to("folder/target")
    if exists:
        target.write_text("old")
    write_file(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert hidden(tmp_path) == hidden(tmp_path / "folder") == []


def test_name_that_is_being_written_cannot_be_predicted(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with replacing_file(tmp_path / "file"):
            names |= set(hidden(tmp_path))
    assert len(names) == 3
    assert not any(str(os.getpid()) in name for name in names)


def test_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, "text")
    reader.join(10)
    assert found == [b"text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_device_is_written_to_and_stays() -> None:
    write_file(Path(os.devnull), "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_standard_output_is_written_to_in_order_whatever_it_is(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from fastblt.models.atomic_file import write_file
print("before")
write_file(Path("/dev/stdout"), "report\\n")
print("after")
"""
    with (tmp_path / "file").open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    piped = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert (tmp_path / "file").read_bytes() == piped.stdout == b"before\nreport\nafter\n"
    assert hidden(tmp_path) == []


def test_folder_in_place_of_a_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write_file(tmp_path, "text")


def test_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    write_file(path, "text")
    assert path.read_text() == "text"


def test_what_killed_processes_left_is_removed_by_the_next_and_what_lives_stays(tmp_path: Path) -> None:
    names = ("file", "folder")
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        living = hidden(tmp_path)
        for name in names:
            remove_leftovers(tmp_path / name)
        assert hidden(tmp_path) == living
        child.kill()
    assert len(living) == 3
    others = [".file.fastblt-12.txt", ".file2.fastblt-aa.partial", ".file.partial"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".file.fastblt-link.partial").symlink_to(tmp_path / others[0])
    for name in names:
        remove_leftovers(tmp_path / name)
    assert hidden(tmp_path) == sorted([*others, ".file.fastblt-link.partial"])
