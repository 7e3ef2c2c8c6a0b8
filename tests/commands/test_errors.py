"""One line and an exit status for whatever ends a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands import inspect
from fastblt.commands.errors import TRACEBACK_VARIABLE, UsageError, describe, exit_status, usage_errors
from fastblt.commands.signals import Stopped
from fastblt.models.config import ConfigError
from fastblt.models.training.corpus_sources import CorpusError


def status_of(error: BaseException) -> int:
    def command() -> None:
        raise error

    return exit_status(command)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("a\n  b"), "a b"),
        (CorpusError("c"), "c"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "f"), "f: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(2, "No such file or directory", b"\xff"), "\\xff: No such file or directory"),
        (MemoryError(), "out of memory"),
        (MemoryError("unable to allocate 9 GiB"), "out of memory (unable to allocate 9 GiB)"),
        (RecursionError("maximum depth"), "something is nested too deeply (maximum depth)"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "this command needs the package torch, install it with: pip install 'fastblt[export]'",
        ),
        (ModuleNotFoundError("No module named 'x'", name="x"), "this command needs the package x"),
        (ConfigError("a\x1b[31m\u202eb\u2028\udcff"), "a\\x1b[31m\\u202eb \\xff"),
    ],
)
def test_error_is_described_and_ends_command(
    error: Exception, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(error) == 1
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize(
    "error", [AssertionError("a"), TypeError("b"), ModuleNotFoundError("c", name="fastblt.nothing"), KeyError("d")]
)
def test_defect_is_one_line_that_states_where_to_report_it(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: defect of fastblt: {type(error).__name__}: {error}; ")
    assert TRACEBACK_VARIABLE in line
    assert "/issues" in line


@pytest.mark.parametrize("error", [ConfigError("x"), TypeError("y")])
def test_traceback_is_shown_when_asked_for(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert status_of(error) == 1
    assert capsys.readouterr().err.startswith("Traceback (most recent call last)")


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (Stopped(15), 143), (Stopped(1), 129), (BrokenPipeError(), 1)]
)
def test_some_ends_are_silent(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(error) == status
    assert capsys.readouterr() == ("", "")


def test_arguments_that_mean_nothing_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"^x$"), usage_errors():
        raise ConfigError("x")
    assert status_of(UsageError("x")) == 2
    assert capsys.readouterr().err == "error: x\n"
    assert describe(UsageError("x")) == "x"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (EOFError("e"), 1, "error: a file ends too early: e\n"),
        (KeyboardInterrupt(), 130, ""),
        (KeyError("k"), 1, "error: defect of fastblt: KeyError: 'k'; "),
    ],
)
def test_command_ends_with_one_line_whatever_it_raises(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "read_facts", fail)
    result = CliRunner().invoke(app, ["inspect", "random:tiny"])
    assert result.exit_code == status
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == (status == 1)


def test_without_arguments_help_is_an_error() -> None:
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: fastblt ")


@pytest.mark.parametrize("name", ["[/x]", "a\nb", "\x1b[31m", "\udcff"])
def test_names_of_files_are_shown_and_obeyed_by_nobody(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(tiny_bundle)
    shown = name.translate({10: "\\n", 27: "\\x1b", 0xDCFF: "\\xff"})
    for arguments in (["inspect"], ["doctor"], ["pack", "--engines", "none"]):
        target = [str(tmp_path / f"{name}.tar")] if arguments[0] == "pack" else []
        result = CliRunner().invoke(app, [arguments[0], str(tmp_path / name), *target, *arguments[1:]])
        assert result.exit_code == 0, result.stderr
        assert f"{tmp_path}/{shown}" in result.stdout


def test_error_of_the_program_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastblt", "inspect", str(tmp_path / "a\nb")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
