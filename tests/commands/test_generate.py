import io
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.generate import Plain, parse_bias, read_prompt
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


def test_default_method_is_auto_and_with_a_seed_s8(tiny_bundle: Path) -> None:
    for options, method in (((), "auto"), (("--seed", "1", "--temperature", "1"), "s:8")):
        statistics = generate(tiny_bundle, "--max-new-bytes", "8", "--stats", *options)[1]
        assert next(line.split()[1] for line in statistics.splitlines() if line.startswith("method")) == method


def test_banned_and_unlikely_bytes_are_not_written(tiny_bundle: Path, expected: bytes) -> None:
    common = bytes([Counter(byte for byte in expected if 32 < byte < 127).most_common(1)[0][0]])
    rare = [byte for byte in range(256) if byte not in b"abc"]
    assert common in expected
    for options in (("--ban", common.decode()), ("--logit-bias", f"{common[0]}=-inf")):
        assert common not in generate(tiny_bundle, "--max-new-bytes", "60", *options)[0]
    bias = [word for byte in rare for word in ("--logit-bias", f"{byte}=-inf")]
    assert set(generate(tiny_bundle, "--max-new-bytes", "20", *bias)[0]) <= set(b"abc")


def test_one_likeliest_byte_is_greedy(tiny_bundle: Path, expected: bytes) -> None:
    for option in (("--top-k", "1"), ("--min-p", "1")):
        assert generate(tiny_bundle, "--max-new-bytes", "60", "--temperature", "2", *option)[0] == expected


def test_log_probabilities_are_written(tiny_bundle: Path, expected: bytes, tmp_path: Path) -> None:
    file = tmp_path / "logprobs.json"
    generate(tiny_bundle, "--max-new-bytes", "60", "--logprobs", str(file))
    found = json.loads(file.read_text())
    assert bytes(found["bytes"]) == expected
    assert len(found["logprobs"]) == len(expected)
    assert all(value <= 0 for value in found["logprobs"])


def test_session_continues_a_saved_text(tiny_bundle: Path, tmp_path: Path) -> None:
    session, count = tmp_path / "text", ("--max-new-bytes", "8", "--method", "ar")
    first, _ = generate(tiny_bundle, "--session", str(session), *count)
    second, table = generate(tiny_bundle, "--session", str(session), "--stats", *count, prompt=b"and")
    text = PROMPT + first + b"and"
    assert second == generate(tiny_bundle, *count, prompt=text)[0]
    assert f"{len(text)} ({len(PROMPT + first) - 1} read earlier), 8" in table
    # Without a prompt it continues, too; with --max-bytes of its own as soon as the text fits.
    arguments = ["generate", str(tiny_bundle), "--provider", "cpu", "--session", str(session), *count]
    third = CliRunner().invoke(app, arguments)
    assert third.stdout_bytes == generate(tiny_bundle, *count, prompt=text + second)[0]
    before = session.read_bytes()
    refused = CliRunner().invoke(app, [*arguments, "--max-bytes", "20"])
    assert refused.exit_code == 1
    assert f"{session}: not a saved sequence that can be used (found 35 bytes of text, expected" in refused.stderr
    assert session.read_bytes() == before


def test_session_that_another_command_wrote_meanwhile_is_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tmp_path / "text"
    monkeypatch.setattr(Plain, "finish", lambda self: session.write_bytes(b"of another command"))
    arguments = ["generate", str(tiny_bundle), "", "--provider", "cpu", "--session", str(session)]
    result = CliRunner().invoke(app, [*arguments, "--max-new-bytes", "2"])
    assert result.exit_code == 1
    assert f"{session}: found it changed since it was read" in result.stderr
    assert session.read_bytes() == b"of another command"


@pytest.mark.parametrize("item", ["10", "x=1", "10=y", "=1"])
def test_malformed_bias_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match=r"--logit-bias: found .*, expected BYTE=VALUE"):
        parse_bias([item])


def test_bias_is_parsed() -> None:
    assert parse_bias(["10=-2.5", "0x41=1", "7=-inf"]) == {10: -2.5, 0x41: 1.0, 7: float("-inf")}


def test_checkpoint_is_refused_with_the_command_that_exports_it(tiny_checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(tiny_checkpoint), "x"])
    assert result.exit_code == 1
    found = f"{tiny_checkpoint}: found a checkpoint, expected a bundle; export it first: fastblt export"
    assert result.stderr == f"error: {found} {tiny_checkpoint} tiny-bundle\n"


def test_eager_backend_runs_a_checkpoint(tiny_checkpoint: Path, expected: bytes) -> None:
    found = generate(tiny_checkpoint, "--max-new-bytes", "60", "--method", "s:8", "--backend", "eager")
    assert found == (expected, "")


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
