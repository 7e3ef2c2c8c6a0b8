"""Standard streams that are closed, full, or read by nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = f"{sys.executable} -m fastblt"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")


@pytest.mark.parametrize(
    ("command", "status", "errors"),
    [
        ("--version >&-", 1, "error: cannot write to standard output: Bad file descriptor\n"),
        pytest.param(
            "inspect {bundle} >/dev/full",
            1,
            "error: cannot write to standard output: No space left on device\n",
            marks=needs_full,
        ),
        ("inspect {bundle} | true", 0, ""),
        ("--version 2>&- <&-", 0, ""),
        ("inspect nothing 2>&-", 1, ""),
        pytest.param("inspect nothing 2>/dev/full", 1, "", marks=needs_full),
        ("generate {bundle} --prompt-file - <&-", 1, "error: standard input: Bad file descriptor\n"),
        ("inspect {bundle} --json {tmp}/x.json <&- 2>&- >/dev/null", 0, ""),
    ],
)
def test_command_survives_what_it_is_given(
    command: str, status: int, errors: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    line = command.format(bundle=tiny_bundle, tmp=tmp_path)
    done = subprocess.run(["bash", "-c", f"{PROGRAM} {line}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, errors)


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_output_is_named_whether_python_buffers_it_or_not(unbuffered: str) -> None:
    line = f"PYTHONUNBUFFERED={unbuffered} {PROGRAM} --version >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


def test_locale_without_a_character_is_no_reason_to_stop(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "fastblt", "inspect", str(tmp_path / "é")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert f"{tmp_path}/\\xe9: " in done.stderr


def test_current_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {PROGRAM} inspect nothing --json x.json"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: the current folder does not exist any more\n"


def test_no_home_and_no_environment_are_enough(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastblt", "inspect", str(tiny_bundle)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    assert (done.returncode, done.stderr) == (0, "")
