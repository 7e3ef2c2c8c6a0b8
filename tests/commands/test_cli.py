import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fastblt.commands
from fastblt import __version__
from fastblt.cli import COMMANDS, app
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
    declares = re.compile(r"^(def command\(|COMMANDS = )", re.MULTILINE)
    declared = {path.stem for path in folder.glob("*.py") if declares.search(path.read_text())}
    assert declared == {name.replace("-", "_") for name in COMMANDS}


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


@pytest.fixture(scope="module")
def imported_by_help() -> set[str]:
    """Every module that there is when help is written."""
    code = """
import sys, fastblt.cli
try:
    fastblt.cli.app(["--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("module", ["numpy", "torch", "onnxruntime", "onnx", "rich"])
def test_help_imports_nothing_large(module: str, imported_by_help: set[str]) -> None:
    assert "fastblt.cli" in imported_by_help
    assert module not in imported_by_help


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
        (["generate", "{tmp}", "--prompt-file", "{tmp}/none"], "{tmp}/none: No such file or directory"),
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
    check_error(1, arguments, expected, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "{tmp}", "x", "--method", "q"], "method 'q': unknown"),
        (["generate", "{tmp}", "x", "--prompt-file", "y"], "both PROMPT and --prompt-file"),
        (["generate", "{tmp}", "x", "--ban", ""], "--ban: found an empty text"),
        (["generate", "{tmp}", "x", "--backend", "abacus"], "'abacus', expected one of onnxruntime, eager"),
        (["bench", "{tmp}", "--methods", "ar,s:0"], "draft length '0'"),
        (["bench", "{tmp}", "--against", "eager/q"], "method 'q': unknown"),
        (["bench", "{tmp}", "--prompts", "97"], "found 97 of 64 bytes, expected at most 96"),
        (["generate", "{tmp}", "x", "--provider", "q"], "invalid value for '--provider': found 'q'"),
        (["generate", "{tmp}", "x", "--max-bytes", "1e99"], "invalid value for '--max-bytes'"),
        (["generate", "{tmp}", "x", "--max-bytes", "99999999999"], "invalid value for '--max-bytes'"),
        (["generate", "{tmp}", "x", "--seed", "9" * 30], "invalid value for '--seed': found a number of more than 64"),
        (["generate", "{tmp}", "x", "--top-p", "2"], "top_p"),
        (["generate", "{tmp}", "x", "--logit-bias", "a"], "--logit-bias: found 'a'"),
        (["generate", ""], "invalid value for 'bundle': found an empty path"),
        (["pack", "{tmp}", ""], "found an empty path"),
        (["inspect", ""], "found an empty name"),
        (["inspect", "{tmp}", "--json", ""], "invalid value for '--json': found an empty path"),
        (["inspect", "random:tiny", "--patcher", ""], "found an empty name"),
        (["bench", "{tmp}", "--threads", "5000"], "invalid value for '--threads'"),
        (["compile", "{tmp}", "--sm", "1e99"], "--sm: found '1e99'"),
        (["compile", "{tmp}", "--max-bytes", "9" * 30], "--max-bytes: found '999"),
        (["generate"], "missing argument 'bundle' (see fastblt generate --help)"),
        (["generate", "--nope"], "no such option: --nope"),
        (["generate", "{tmp}", "x", "y"], "unexpected extra argument"),
        (["nosuch"], "no such command 'nosuch' (see fastblt --help)"),
    ],
)
def test_usage_error_is_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    check_error(2, arguments, expected, tmp_path)


def check_error(status: int, arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert result.exit_code == status, result.stderr
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected.replace("{tmp}", str(tmp_path)) in line
    assert not list(tmp_path.iterdir())


RunCommand = Callable[[list[str]], tuple[int, str]]
#: Has run a command, which imports what most import, and runs each line of arguments in a copy of itself.
SERVER = """
import contextlib, io, json, os, sys, fastblt.cli
with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
    fastblt.cli.app(["audit", "random:tiny"])
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


#: Arguments that mean nothing, whatever is in the files.
USAGE = [
    (["quantize", "{bundle}", "{tmp}/new", "--scheme", "w3"], "--scheme: found 'w3'"),
    (["audit", "{bundle}", "--methods", "ar,q"], "method 'q': unknown"),
    (["audit", "{bundle}", "--reference", "abacus"], "backend: found 'abacus'"),
    (["audit", "{bundle}", "--methods", ""], "methods: found none, expected at least one"),
    (["verify", "{bundle}", "--methods", "q"], "method 'q': unknown"),
    (["verify", "{bundle}", "--methods", ""], "methods: found none, expected at least one"),
    (["eval", "{bundle}", "--rules", "most"], "unmasking rule 'most'"),
    (["eval", "{bundle}", "--mask-rates", "2"], "mask rate: found 2.0"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *USAGE,
        (["export", "random:nosuch", "{tmp}/new"], "preset 'nosuch': unknown, expected one of tiny"),
        (["export", "random:tiny", "{bundle}"], "{bundle}: found a bundle, expected a new name; --force replaces it"),
        (["export", "random:tiny", "{tmp}"], "{tmp}: exists and is not a bundle"),
        (["export", "random:tiny", "{tmp}/file/new"], "{tmp}/file/new: found the file {tmp}/file above it"),
        (["export", "{bundle}", "{tmp}/new"], "{bundle}: found a bundle (manifest.json), expected the checkpoint"),
        (["convert", "random:nosuch", "{tmp}/new", "--to", "transformers"], "preset 'nosuch': unknown"),
        (["convert", "random:tiny", "{tmp}", "--to", "transformers"], "{tmp}: found something there"),
        (["quantize", "{bundle}", "{bundle}", "--scheme", "w4"], "{bundle}: found a bundle, expected a new name"),
        (["quantize", "{bundle}", "{tmp}/new", "--scheme", "w8", "--traces", "{tmp}/file"], "{tmp}/file: found a file"),
        (["compile", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["inspect", "random:nosuch"], "preset 'nosuch': unknown"),
        (["bench", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["audit", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["audit", "{bundle}", "--json", "{bundle}/x.json"], "{bundle}/x.json: found a bundle as its folder"),
        (["pack", "{bundle}", "{bundle}/x.tar"], "{bundle}/x.tar: found a bundle as its folder"),
        (["pack", "{bundle}", "{tmp}/link"], "{tmp}/link: found a bundle as its folder"),
        (["pack", "{bundle}", "--sign", "{tmp}/none"], "{tmp}/none: missing, expected an SSH key"),
        (["verify", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
        (["eval", "random:tiny"], "random:tiny: found a checkpoint, expected a bundle; export it first"),
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
    assert code == (2 if (arguments, expected) in USAGE else 1)
    assert expected.format(**names) in stderr
    assert "imported" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("command", ["export", "bench", "generate", "quantize", "train", "verify"])
def test_help_of_command_imports_neither_pytorch_nor_onnx(run_command: RunCommand, command: str) -> None:
    assert run_command([command, "--help"]) == (0, "")


def test_help_lists_what_the_registries_hold() -> None:
    text = " ".join(CliRunner().invoke(app, ["generate", "--help"]).stdout.split())
    assert all(f"{entry.syntax} (" in text for entry in methods())
    assert all(f"{entry.name} (" in text for entry in backends())


def test_lm_eval_prints_no_control_characters_of_its_arguments() -> None:
    result = CliRunner().invoke(app, ["lm-eval", "--model", "fastblt", "\x1b[31m"])
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert "found control characters in '\\x1b[31m', expected text" in result.output
