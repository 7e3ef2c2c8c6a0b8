from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.runtime.measure.scoring.comparison import BOUNDS, Bounds
from fastblt.runtime.measure.scoring.plan import FIGURE8

PNG = b"\x89PNG\r\n\x1a\n"
FILES = ["acceptance.png", "diversity.png", "eval.json", "masked_accuracy.png"]
SMALL = (
    *("--windows", "2", "--window-bytes", "64", "--anchors", "2", "--prompts", "2", "--prompt-bytes", "16"),
    *("--max-new-bytes", "16", "--k", "2,4", "--blocks", "2,4", "--draft-rules", "one", "--rules", "0.7,one"),
    *("--mask-rates", "0.5,1", "--top-p", "0.9", "--gamma", "1.0,2.0", "--provider", "cpu", "--threads", "1"),
)

#: What scripts read; removing or renaming one of these breaks them.
CONTRACT = {
    "text": {"data", "windows", "bytes", "bits_per_byte", "bytes_per_patch"},
    "drafts": {"data", "method", "anchors", "drafted", "accepted", "acceptance"},
    "masked": {"data", "t", "latent", "hidden", "right", "accuracy"},
    "blocks": {"data", "method", "anchors", "bytes", "equal", "agreement", "common_prefix"},
    "generation": {"method", "texts", "bytes", "equal", "agreement", "common_prefix", "decoder_nfe_per_byte"},
    "diversity": {
        *("method", "top_p", "gamma", "texts", "bytes", "type_token_ratio", "words", "decoder_nfe_per_byte"),
        "bits_per_byte",
    },
}


def evaluate(bundle: Path, *options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", str(bundle), *SMALL, *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"The same words, again and again, and then some other words. \xff\x00" * 4)
    return path


def test_held_out_text_is_scored_on_two_backends(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    status, shown, errors = evaluate(tiny_bundle, "--against", "eager", "--out", str(out))
    assert status == 0, errors
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert all((out / name).read_bytes().startswith(PNG) for name in FILES if name.endswith("png"))
    report = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    assert report["model"] == {"name": "tiny", "dtype": "fp32"}
    assert list(report["backends"]) == ["onnxruntime", "eager"]
    one, other = (backend["figures"] for backend in report["backends"].values())
    for kind, fields in CONTRACT.items():
        assert all(row.keys() == fields for row in one[kind])
        assert len(one[kind]) == len(other[kind]) > 0
    names = ["overall", "pycode", "pydocs", "web", "shak"]
    assert [row["data"] for row in one["text"]] == names
    assert one["text"][0]["bytes"] == 4 * 2 * 64
    assert [row["bits_per_byte"] for row in one["text"]] == pytest.approx(
        [row["bits_per_byte"] for row in other["text"]], rel=1e-4
    )
    assert [row["method"] for row in one["drafts"]][:4] == ["s:2", "s:4", "dv:2@one", "dv:4@one"]
    assert len(one["masked"]) == 2 * 2 * len(names)
    assert [row["method"] for row in one["generation"]] == ["d:4@0.7", "d:4@one"]
    assert [row["method"] for row in one["diversity"]] == ["ar", "d:4@eb1.0", "d:4@eb2.0"]
    assert report["agreement"]["agree"] is True
    assert report["agreement"]["backends"] == ["onnxruntime", "eager"]
    lines = [line.split() for line in shown.splitlines()]
    assert ["overall", "8", "512", f"{one['text'][0]['bits_per_byte']:.4f}"] in [line[:4] for line in lines]
    assert shown.splitlines()[-1] == "verdict: onnxruntime and eager agree"
    assert "tiny (fp32), onnxruntime on cpu; held-out text: 8 pieces of 64 bytes" in shown.splitlines()[0]


def test_files_of_the_user_are_scored_by_name(tiny_bundle: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(range(256)))
    data = ("--data", str(text), "--data", str(other))
    status, shown, errors = evaluate(
        tiny_bundle, *data, "--prompts", "99", "--against", "none", "--out", str(tmp_path), "--no-plots"
    )
    assert status == 0, errors
    report = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "other.bin", "text.txt"]
    figures = report["backends"]["onnxruntime"]["figures"]
    assert [row["data"] for row in figures["text"]] == ["overall", str(text), str(other)]
    assert report["agreement"] is None
    assert report["setting"]["heldout"] is False
    assert report["setting"]["prompts"] == 248 // 16 + 256 // 16, "as many as there is room for"
    assert {row["texts"] for row in figures["diversity"]} == {248 // 16 + 256 // 16}
    assert shown.splitlines()[-1] == "verdict: only onnxruntime was scored, nothing to compare with"


def test_protocol_of_figure_8(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--windows", "1", "--window-bytes", "64", "--threads", "1", "--out", str(tmp_path), "--top-p", "0.9"]
    cheap = ["--prompts", "2", "--max-new-bytes", "16", "--gamma", "0.5,1.2"]
    result = CliRunner().invoke(app, ["eval", str(tiny_bundle), "--figure8", *options, *cheap])
    assert result.exit_code == 0, result.stderr or result.exception
    report = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert list(report["backends"]) == ["onnxruntime"], "no second backend unless it is asked for"
    assert report["setting"]["prompt_bytes"] == 0
    figures = report["backends"]["onnxruntime"]["figures"]
    assert [kind for kind, rows in figures.items() if rows] == ["text", "diversity"]
    rows = figures["diversity"]
    assert [row["method"].partition("@")[2] for row in rows] == ["", "eb0.5", "eb1.2"]
    assert all(row["texts"] == 2 and row["bytes"] <= 32 and row["bits_per_byte"] > 0 for row in rows)
    assert (tmp_path / "diversity.png").read_bytes().startswith(PNG)


def test_figure_8_has_the_papers_lengths_and_bounds() -> None:
    assert FIGURE8.new_bytes == 1000
    assert [float(gamma) for gamma in FIGURE8.gamma] == pytest.approx([i / 10 for i in range(5, 13)])
    assert not any((FIGURE8.k, FIGURE8.draft_rules, FIGURE8.rules, FIGURE8.mask_rates))


def test_model_without_blocks_says_what_is_left_out(tiny_encoder_bundle: Path, text: Path, tmp_path: Path) -> None:
    options = ["eval", str(tiny_encoder_bundle), "--data", str(text), "--windows", "2", "--window-bytes", "64"]
    options += ["--prompts", "1", "--max-new-bytes", "8", "--threads", "1", "--out", str(tmp_path), "--against", "none"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.stderr or result.exception
    assert "denoises no blocks: the figures of BLT-D and BLT-DV are left out" in result.stdout
    report = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    figures: dict[str, Any] = report["backends"]["onnxruntime"]["figures"]
    assert [kind for kind, rows in figures.items() if not rows] == ["masked", "blocks", "generation"]
    assert [row["method"] for row in figures["drafts"]] == ["s:4", "s:8", "s:16"]
    assert {row["method"] for row in figures["diversity"]} == {"ar"}
    assert not (tmp_path / "masked_accuracy.png").exists()
    assert len(report["left_out"]) == 1


def test_empty_lists_leave_figures_out(tiny_bundle: Path, text: Path) -> None:
    lists = [word for name in ("k", "blocks", "mask-rates", "top-p") for word in (f"--{name}", "")]
    status, shown, errors = evaluate(tiny_bundle, "--data", str(text), "--against", "none", *lists)
    assert status == 0, errors
    assert "bits per byte" in shown
    assert not any(words in shown for words in ("acceptance", "masked accuracy", "autoregressive", "diversity"))


def test_command_fails_when_backends_differ(
    tiny_bundle: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOUNDS, "fp32", Bounds(bits_per_byte=-1.0, outcomes=0.0, texts=0.0))
    options = ("--data", str(text), "--against", "eager", "--out", str(tmp_path), "--no-plots")
    status, shown, errors = evaluate(tiny_bundle, *options)
    assert status == 1
    assert "onnxruntime and eager differ in bits_per_byte" in errors
    assert "DIFFER" in shown
    report = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert report["agreement"]["agree"] is False


def test_plots_are_left_out_where_matplotlib_is_missing(
    tiny_bundle: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    status, shown, errors = evaluate(tiny_bundle, "--data", str(text), "--against", "none", "--out", str(out))
    assert status == 0, errors
    assert [path.name for path in out.iterdir()] == ["eval.json"]
    assert "no plots: matplotlib is not installed (pip install matplotlib)" in shown


def test_missing_matplotlib_is_reported_before_the_work_where_plots_are_asked_for(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, shown, errors = evaluate(tiny_bundle, "--out", str(tmp_path / "out"), "--plots")
    assert status == 1
    assert errors.startswith("error: this command needs the package matplotlib, install it with: pip install")
    assert not (tmp_path / "out").exists()
    assert shown == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--data", "{empty}"), "found 0 bytes, expected at least one window of 16"),
        (("--data", "{short}"), "found 40 bytes, expected at least one window of 64"),
        (("--data", "{text}", "--data", "{text}"), "found '{text}' 2 times"),
        (("--k", "4,x"), "--k: found 'x', expected whole numbers greater than 0"),
        (("--k", "0"), "--k: found '0'"),
        (("--blocks", "4,2.5"), "--blocks: found '2.5', expected whole numbers"),
        (("--blocks", "999"), "found blocks of 999 bytes, expected at most"),
        (("--top-p", "0.5,nan"), "--top-p: found 'nan', expected numbers greater than 0"),
        (("--top-p", "1.5"), "top_p: found 1.5"),
        (("--rules", "most"), "unmasking rule 'most'"),
        (("--gamma", "-1"), "unmasking rule 'eb-1'"),
        (("--mask-rates", "1.1"), "mask rate: found 1.1"),
        (("--window-bytes", "6"), "found 6 bytes, expected at least"),
        (("--prompts", "999"), "prompts: found 999"),
        (("--against", "onnxruntime"), "against: found 'onnxruntime', expected another backend"),
        (("--against", "torch"), "backend: found 'torch', expected one of onnxruntime, eager"),
        (("--out", "{text}"), "found a file, expected a folder"),
    ],
)
def test_errors_name_what_was_found(
    tiny_bundle: Path, text: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    paths = {"text": text, "empty": tmp_path / "empty", "short": tmp_path / "short"}
    paths["empty"].write_bytes(b"")
    paths["short"].write_bytes(b"x" * 40)

    def fill(word: str) -> str:
        return word.format(**paths)

    status, _, errors = evaluate(tiny_bundle, *map(fill, options))
    model_or_file = ("--data", "--blocks", "--window-bytes", "--out")
    assert status == (1 if options[0] in model_or_file and options[1] != "4,2.5" else 2)
    assert fill(message) in errors
    assert len(errors.splitlines()) == 1
