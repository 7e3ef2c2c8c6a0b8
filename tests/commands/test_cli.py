import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt import __version__
from fastblt.cli import app
from fastblt.commands.errors import TRACEBACK_VARIABLE, describe, one_line_errors
from fastblt.models.config import ConfigError
from fastblt.models.training.corpus_sources import CorpusError

COMMANDS = (
    "data",
    "train",
    "export",
    "convert",
    "calibrate",
    "compile",
    "generate",
    "bench",
    "audit",
    "verify",
    "eval",
)
COMMANDS += ("inspect", "doctor", "pack", "unpack")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_names_its_arguments(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: fastblt {command} ")


def test_version_is_that_of_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"fastblt {__version__}\n")


@pytest.mark.parametrize("module", ["numpy", "torch", "onnxruntime", "onnx", "rich"])
def test_help_imports_nothing_large(module: str) -> None:
    code = f"""
import sys, fastblt.cli
try:
    fastblt.cli.app(["--help"])
except SystemExit:
    sys.exit({module!r} in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"fastblt --help imports {module}"


def test_help_is_quick() -> None:
    # 0.15 s on an idle core; the best of three and a wide bound, because a test machine is not idle.
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fastblt.cli", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inspect", "{tmp}"], "found a folder with nothing, expected a checkpoint: config.json"),
        (["inspect", "{tmp}/nothing"], "found no such folder"),
        (["generate", "{tmp}/nothing", "x"], "{tmp}/nothing"),
        (["generate", "{tmp}", "x", "--method", "q"], "method 'q': unknown"),
        (["generate", "{tmp}", "x", "--prompt-file", "y"], "both PROMPT and --prompt-file"),
        (["generate", "{tmp}", "--prompt-file", "{tmp}/none"], "{tmp}/none: No such file or directory"),
        (["generate", "{tmp}", "x", "--backend", "abacus"], "'abacus', expected one of onnxruntime, eager"),
        (["bench", "{tmp}", "--methods", "ar,s:0"], "draft length '0'"),
        (["bench", "{tmp}", "--against", "eager/q"], "method 'q': unknown"),
        (["bench", "{tmp}", "--prompts", "97"], "found 97 of 64 bytes, expected at most 96"),
        (["bench", "{tmp}", "--json", "{tmp}"], "{tmp}: found a folder"),
        (["export", "{tmp}/nothing", "{tmp}/bundle"], "{tmp}/nothing"),
        (
            ["train", "no-recipe", "--out", "{tmp}/run", "--data", "{tmp}"],
            "one of the shipped recipes blt-d-8m",
        ),
        (["train", "blt-d-8m", "--out", "{tmp}/run", "--data", "{tmp}"], "index.json: not found"),
        (["data", "{tmp}", "--cache", "{tmp}"], "{tmp}: exists already"),
    ],
)
def test_error_is_one_line_when_input_is_bad(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert result.exit_code == 1, result.exception
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected.replace("{tmp}", str(tmp_path)) in line
    assert not list(tmp_path.iterdir())


def test_error_of_installed_command_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastblt.cli", "inspect", str(tmp_path / "a\nb")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("a\n  b"), "a b"),
        (CorpusError("c"), "c"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "f"), "f: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "this command needs the package torch, install it with: pip install 'fastblt[export]'",
        ),
        (ModuleNotFoundError("No module named 'x'", name="x"), "this command needs the package x"),
    ],
)
def test_error_is_described_and_ends_command(
    error: Exception, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert describe(error) == expected

    @one_line_errors
    def command() -> None:
        raise error

    with pytest.raises(Exception) as caught:  # noqa: PT011 -- typer's Exit, whose base differs between versions
        command()
    assert getattr(caught.value, "exit_code", None) == 1
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize(
    "error", [AssertionError("a"), TypeError("b"), ModuleNotFoundError("c", name="fastblt.nothing")]
)
def test_defects_keep_their_traceback(error: Exception) -> None:
    @one_line_errors
    def command() -> None:
        raise error

    with pytest.raises(type(error)):
        command()


def test_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    @one_line_errors
    def command() -> None:
        raise ConfigError("x")

    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ConfigError):
        command()


def test_interrupt_ends_command_quietly() -> None:
    @one_line_errors
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Exception) as caught:  # noqa: PT011
        command()
    assert getattr(caught.value, "exit_code", None) == 130


def test_closed_pipe_is_no_traceback(tiny_checkpoint: Path) -> None:
    command = f"{sys.executable} -m fastblt.cli inspect {tiny_checkpoint} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.stderr == ""
