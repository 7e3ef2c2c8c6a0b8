import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fastblt.commands
from fastblt import __version__
from fastblt.cli import COMMANDS, app
from fastblt.commands.errors import TRACEBACK_VARIABLE, describe, one_line_errors
from fastblt.models.config import ConfigError
from fastblt.models.training.corpus_sources import CorpusError
from fastblt.runtime.backends.registry import backends
from fastblt.runtime.methods.registry import methods


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    listed = [line.split() for line in result.stdout.partition("Commands:")[2].splitlines() if line]
    assert [words[0] for words in listed] == list(COMMANDS)
    assert [" ".join(words[1:]) for words in listed] == list(COMMANDS.values())


def test_every_command_has_a_module_and_every_module_is_known() -> None:
    folder = Path(fastblt.commands.__file__).parent
    declared = {path.stem for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}
    assert declared == set(COMMANDS)


@pytest.mark.parametrize("program", ["fastblt", "fastblt.cli"])
def test_python_m_knows_every_command(program: str) -> None:
    done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_names_its_arguments(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: fastblt {command} ")
    assert COMMANDS[command] in " ".join(result.stdout.split())


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
    # 0.15 s on an idle core; processor time and the best of three, because a test machine is not idle.
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "fastblt.cli", "--help"], capture_output=True, check=True)
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inspect", "{tmp}"], "found a folder with nothing, expected a checkpoint: config.json"),
        (["inspect", "{tmp}/nothing"], "found no such folder"),
        (["inspect", "{tmp}/nothing"], "; or a bundle: manifest.json"),
        (["generate", "{tmp}/nothing", "x"], "{tmp}/nothing"),
        (["generate", "{tmp}", "x", "--method", "q"], "method 'q': unknown"),
        (["generate", "{tmp}", "x", "--prompt-file", "y"], "both PROMPT and --prompt-file"),
        (["generate", "{tmp}", "--prompt-file", "{tmp}/none"], "{tmp}/none: No such file or directory"),
        (["generate", "{tmp}", "x", "--ban", ""], "--ban: found an empty text"),
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


RunCommand = Callable[[list[str]], tuple[int, str]]
#: Has imported what every command imports, and runs each line of arguments in a copy of itself.
SERVER = """
import json, os, sys, numpy, fastblt.cli
for line in sys.stdin:
    arguments, errors = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 70
        try:
            fastblt.cli.app(arguments)
        except SystemExit as end:
            code = end.code
            large = [name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules]
            if large:
                print("imported", large, file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunCommand]:
    """``run_command(arguments)``: exit status and errors of a command, run in a fresh copy of one process."""
    errors = tmp_path_factory.mktemp("commands") / "errors"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        requests, answers = server.stdin, server.stdout
        assert requests is not None
        assert answers is not None

        def run(arguments: list[str]) -> tuple[int, str]:
            print(json.dumps([arguments, str(errors)]), file=requests, flush=True)
            return int(answers.readline()), errors.read_text()

        yield run
        requests.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export", "random:nosuch", "{tmp}/new"], "preset 'nosuch': unknown, expected one of tiny"),
        (["export", "random:tiny", "{bundle}"], "{bundle}: found a bundle, expected a new name; --force replaces it"),
        (["export", "random:tiny", "{tmp}"], "{tmp}: exists and is not a bundle"),
        (["export", "random:tiny", "{tmp}/file/new"], "{tmp}/file/new: found the file {tmp}/file above it"),
        (["export", "{bundle}", "{tmp}/new"], "{bundle}: found a bundle (manifest.json), expected the checkpoint"),
        (["convert", "random:nosuch", "{tmp}/new", "--to", "transformers"], "preset 'nosuch': unknown"),
        (["convert", "random:tiny", "{tmp}", "--to", "transformers"], "{tmp}: found something there"),
        (["quantize", "{bundle}", "{bundle}", "--scheme", "w4"], "{bundle}: found a bundle, expected a new name"),
        (["quantize", "{bundle}", "{tmp}/new", "--scheme", "w3"], "--scheme: found 'w3'"),
        (["quantize", "{bundle}", "{tmp}/new", "--scheme", "w8", "--traces", "{tmp}/file"], "{tmp}/file: found a file"),
        (["compile", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["inspect", "random:nosuch"], "preset 'nosuch': unknown"),
        (["bench", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["audit", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["audit", "{bundle}", "--methods", "ar,q"], "method 'q': unknown"),
        (["audit", "{bundle}", "--reference", "abacus"], "backend: found 'abacus'"),
        (["audit", "{bundle}", "--methods", ""], "methods: found none, expected at least one"),
        (["audit", "{bundle}", "--json", "{bundle}/x.json"], "{bundle}/x.json: found a bundle as its folder"),
        (["pack", "{bundle}", "{bundle}/x.tar"], "{bundle}/x.tar: found a bundle as its folder"),
        (["pack", "{bundle}", "{tmp}/link"], "{tmp}/link: found a bundle as its folder"),
        (["pack", "{bundle}", "--sign", "{tmp}/none"], "{tmp}/none: missing, expected an SSH key"),
        (["verify", "{bundle}", "--methods", "q"], "method 'q': unknown"),
        (["verify", "{bundle}", "--methods", ""], "methods: found none, expected at least one"),
        (["verify", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["eval", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["eval", "{bundle}", "--rules", "most"], "unmasking rule 'most'"),
        (["eval", "{bundle}", "--mask-rates", "2"], "mask rate: found 2.0"),
        (["eval", "{bundle}", "--out", "{bundle}"], "found a bundle as its folder"),
        (["train", "no-recipe", "--out", "{tmp}/run"], "neither a file nor one of the shipped recipes"),
    ],
)
def test_arguments_are_checked_before_anything_large_is_imported(
    run_command: RunCommand, arguments: list[str], expected: str, tmp_path: Path, tiny_bundle: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tiny_bundle / "manifest.json")
    names = {"tmp": str(tmp_path), "bundle": str(tiny_bundle)}
    code, stderr = run_command([argument.format(**names) for argument in arguments])
    assert code == 1
    assert expected.format(**names) in stderr
    assert "imported" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("command", ["export", "bench", "generate", "quantize", "train", "verify"])
def test_help_of_command_imports_neither_pytorch_nor_onnx(command: str) -> None:
    code = f"""
import sys, fastblt.cli
try:
    fastblt.cli.app([{command!r}, "--help"])
except SystemExit:
    sys.exit(any(name in sys.modules for name in ("torch", "onnx", "onnxruntime")))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_help_lists_what_the_registries_hold() -> None:
    text = " ".join(CliRunner().invoke(app, ["generate", "--help"]).stdout.split())
    assert all(f"{entry.syntax} (" in text for entry in methods())
    assert all(f"{entry.name} (" in text for entry in backends())


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
