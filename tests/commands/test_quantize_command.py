from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fastblt.calibration.heldout import load_text
from fastblt.cli import app
from fastblt.runtime.bundle.manifest import load_manifest


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """Text to calibrate on and other text to measure on."""
    data = load_text("web")
    files = tmp_path / "calibration.txt", tmp_path / "heldout.txt"
    for file, start in zip(files, (0, 4000), strict=True):
        file.write_bytes(data[start : start + 1000])
    return files


def quantize(bundle: Path, out: Path, *options: str) -> Result:
    few = ["--samples", "32", "--prompts", "2", "--windows", "1", "--window-bytes", "96"]
    return CliRunner().invoke(app, ["quantize", str(bundle), str(out), *few, *options])


def test_result_is_told_and_written(tiny_bundle: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    data, heldout = map(str, texts)
    out = tmp_path / "out"
    result = quantize(tiny_bundle, out, "--scheme", "w4", "--data", data, "--heldout", heldout, "--budget", "bpb=900%")
    assert result.exit_code == 0, result.stderr or result.exception
    for told in ("tiny in w4, gptq", "bits per byte", "acceptance of s:8", "decoder.onnx", "w4/32"):
        assert told in result.stdout
    assert load_manifest(out).quantization is not None
    inspected = CliRunner().invoke(app, ["inspect", str(out)])
    assert "w4/32" in inspected.stdout
    audited = CliRunner().invoke(app, ["audit", str(out), "--prompts", "2", "--max-new-bytes", "32"])
    assert audited.exit_code == 0, audited.stdout
    assert "against onnxruntime ar" in audited.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "w3"], "error: --scheme: found 'w3'"),
        (["--scheme", "w4", "--budget", "bpb"], "error: --budget: found 'bpb'"),
        (["--scheme", "w4", "--samples", "2"], "error: --samples: found 2"),
        (["--scheme", "w4", "--budget", "agreement=0%", "--uniform"], "found a loss of agreement"),
    ],
)
def test_errors_are_one_line_and_nothing_is_left(
    options: list[str], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = quantize(tiny_bundle, tmp_path / "out", *options)
    assert result.exit_code == (1 if "--uniform" in options else 2)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_measuring_on_what_was_calibrated_on_is_refused(
    tiny_bundle: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    same = str(texts[0])
    result = quantize(tiny_bundle, tmp_path / "out", "--scheme", "w8", "--data", same, "--heldout", same)
    assert result.exit_code == 2
    assert "found in --data and in --heldout" in result.stderr


def test_bundle_is_replaced_only_when_forced(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((tiny_bundle / "manifest.json").read_bytes())
    result = quantize(tiny_bundle, tmp_path, "--scheme", "w8")
    assert result.exit_code == 1
    assert f"{tmp_path}: found a bundle, expected a new name; --force replaces it" in result.stderr


def test_calibrate_is_its_earlier_name() -> None:
    result = CliRunner().invoke(app, ["calibrate", "--help"])
    assert result.exit_code == 0
    assert "Make a bundle smaller" in result.stdout
