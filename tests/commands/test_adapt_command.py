from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fastblt.cli import app
from fastblt.models.adapting import quality


@pytest.fixture
def arguments(tiny_encoder_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(quality, "_WINDOWS", 2)
    (tmp_path / "text").write_bytes(b"ninety-nine bottles of beer on the wall; " * 100)
    run = ["adapt", str(tiny_encoder_checkpoint), str(tmp_path / "run"), "--text", str(tmp_path / "text")]
    return [
        *run,
        "--steps",
        "2",
        "--batch",
        "2",
        "--window",
        "48",
        "--block-size",
        "4",
        "--rank",
        "2",
        "--threads",
        "1",
    ]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_run_stops_in_time_resumes_and_ends_with_checkpoint(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped = invoke(*arguments, "--max-seconds", "0")
    assert stopped.exit_code == 0, stopped.stderr or stopped.exception
    assert stopped.stdout.splitlines()[-1] == f"{run}: time is up, --resume continues"
    refused = invoke(*arguments)
    assert refused.exit_code == 1
    assert "expected a new folder or --resume" in refused.stderr
    resumed = invoke(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.stderr or resumed.exception
    lines = resumed.stdout.splitlines()
    assert f"{run}: continues at step 0" in lines
    assert any(line.startswith("model step 2 ") and "acceptance_dv" in line for line in lines)
    assert lines[-1] == f"done, see {run / 'checkpoint'}"
    again = invoke("adapt", str(run / "checkpoint"), str(tmp_path / "again"))
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    assert "found decoder_input 'mixed' (blocks of 4 bytes), expected a BLT without blocks" in again.stderr


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (("--rank", "much"), 2, "--rank: found 'much', expected a positive integer or full"),
        (("--block-size", "0"), 2, "'block_size': found 0, expected a positive integer"),
        (("--distill", "2"), 2, "'distilled': found 2.0, expected a part, from 0 to 1"),
        (("--window", "4096"), 1, "text: found 4,100 bytes of text, expected at least 131,072 (32 windows)"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], changes: tuple[str, ...], status: int, message: str) -> None:
    result = invoke(*arguments, *changes)
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert message in result.stderr
