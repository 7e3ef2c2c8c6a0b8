import io
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.generate import Plain, read_prompt
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk

PROMPT = b"caf\xc3\xa9 \xff\xfe"


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> bytes:
    """What the runtime generates after `PROMPT`."""
    runtime = BltRuntime.from_pretrained(tiny_bundle, provider="cpu", max_bytes=256)
    return runtime.generate(PROMPT, 60, method="s:8").data


def generate(bundle: Path, *options: str, prompt: bytes = PROMPT) -> tuple[bytes, str]:
    """Standard output and standard error of ``fastblt generate``, the prompt on its standard input."""
    arguments = [
        "generate",
        str(bundle),
        "--prompt-file",
        "-",
        "--provider",
        "cpu",
        "--max-bytes",
        "256",
        *options,
    ]
    result = CliRunner().invoke(app, arguments, input=prompt)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout_bytes, result.stderr


@pytest.mark.parametrize("method", ["ar", "s:4", "s:8"])
def test_output_is_runtimes_bytes_when_piped(tiny_bundle: Path, expected: bytes, method: str) -> None:
    assert generate(tiny_bundle, "--max-new-bytes", "60", "--method", method) == (expected, "")


def test_nothing_is_printed_when_no_bytes_are_wanted(tiny_bundle: Path) -> None:
    assert generate(tiny_bundle, "--max-new-bytes", "0") == (b"", "")


def test_empty_prompt_gives_bytes(tiny_bundle: Path) -> None:
    assert len(generate(tiny_bundle, "--max-new-bytes", "20", prompt=b"")[0]) == 20


def test_text_ends_before_stop_string(tiny_bundle: Path, expected: bytes) -> None:
    # A command's arguments are text: take a stop string from the printable bytes.
    stop = next(bytes([byte]) for byte in expected[5:] if 32 < byte < 127)
    got, _ = generate(tiny_bundle, "--max-new-bytes", "60", "--stop", "\x01\x02", "--stop", stop.decode())
    assert got == expected[: expected.index(stop)]


def test_statistics_go_to_standard_error(tiny_bundle: Path, expected: bytes) -> None:
    got, statistics = generate(tiny_bundle, "--max-new-bytes", "60", "--stats")
    assert got == expected
    for name in ("NFE", "accepted drafts", "bytes/s", "60 (ended by length)"):
        assert name in statistics


def test_show_marks_text_and_prints_statistics(tiny_bundle: Path) -> None:
    shown = generate(tiny_bundle, "--max-new-bytes", "60", "--show")[0].decode()
    legend, _, rest = shown.partition("\n\n")
    assert "patch boundary" in legend
    assert rest.replace("│", "").startswith("café \\xff\\xfe")
    assert "NFE" in rest


def test_sampling_drafts_by_itself_and_repeats_with_seed(tiny_bundle: Path) -> None:
    options = ("--max-new-bytes", "40", "--temperature", "1.5", "--seed", "3")
    assert generate(tiny_bundle, *options) == generate(tiny_bundle, *options, "--method", "s:8")


def test_heldout_prompt_is_told_when_none_is_given(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(tiny_bundle), "--provider", "cpu", "--max-new-bytes", "5"])
    assert result.exit_code == 0
    assert len(result.stdout_bytes) == 5
    assert result.stderr.startswith("prompt web-00 (")
    assert result.stderr.count("\n") == 1


def test_error_is_one_line_when_prompt_exceeds_capacity(tiny_bundle: Path) -> None:
    arguments = [
        "generate",
        str(tiny_bundle),
        "abc",
        "--provider",
        "cpu",
        "--max-bytes",
        "64",
        "--max-new-bytes",
        "62",
    ]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "max_bytes=64" in result.stderr


def test_trained_model_goes_on_in_text(demo_bundle: Path) -> None:
    arguments = ["generate", str(demo_bundle), "And God said, ", "--provider", "cpu", "--max-new-bytes", "64"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert all(char.isprintable() or char in "\n\t" for char in result.stdout_bytes.decode(errors="ignore"))


def test_prompt_argument_keeps_bytes_that_are_no_utf8() -> None:
    assert read_prompt(os.fsdecode(PROMPT), None) == (PROMPT, "")
    assert read_prompt("", None) == (b"", "")


def test_prompt_file_is_read_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\r\n\x00\xff")
    assert read_prompt(None, tmp_path / "p") == (b"\r\n\x00\xff", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chunks(*pieces: bytes) -> list[Chunk]:
    return [Chunk(piece, ("sampled",) * len(piece), b"", ()) for piece in pieces]


def test_terminal_gets_characters_when_they_are_whole() -> None:
    terminal = Terminal()
    plain = Plain(terminal)
    seen = []
    for chunk in chunks(b"a\xe2", b"\x82", b"\xacb\xff", b"\x1b[2J\tc\xe2"):
        plain.write(chunk)
        seen.append(terminal.getvalue())
    plain.finish()
    assert seen == ["a", "a", "a€b�", "a€b�\\x1b[2J\tc"]
    assert terminal.getvalue() == seen[-1] + "�\n"
