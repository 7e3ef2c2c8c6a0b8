"""The command report, and the page of bench."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes.report_content import report
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.runtime.measure.report import write_json

FEW = ("--prompts", "1", "--max-new-bytes", "8", "--threads", "1", "--provider", "cpu")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def error(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code != 0
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_report_measures_and_writes_a_page(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    path.parent.mkdir()
    printed = run("report", str(tiny_bundle), str(path), "--methods", "s:4", *FEW, "--prompt", "<Question> ")
    assert printed == f"{path}: open it in a browser\n"
    page = path.read_text(encoding="utf-8")
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert "&lt;Question&gt; " in re.sub("<[^>]*>", "", page), "with the ends of patches inside"
    assert 'data-method="s:4"' in page
    assert "Measured for this page. Made by fastblt" in page
    assert "The same bytes as ar. " in page
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_report_takes_figures_from_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    results, path = tmp_path / "bench.json", tmp_path / "report.html"
    write_json(results, report().to_dict())
    run("report", str(tiny_bundle), str(path), "--bench", str(results), "--threads", "1")
    page = path.read_text(encoding="utf-8")
    assert "Figures from bench.json; the texts were generated for it." in page
    assert "2 cores of Processor" in page
    assert 'data-method="s:8"' in page


def test_replay_in_a_file_gets_no_texts(tiny_bundle: Path, tmp_path: Path) -> None:
    results, path = tmp_path / "bench.json", tmp_path / "report.html"
    run("bench", str(tiny_bundle), "--methods", "s:4", *FEW, "--replay", "acceptance=0.8", "--json", str(results))
    run("report", str(tiny_bundle), str(path), "--bench", str(results))
    page = path.read_text(encoding="utf-8")
    assert "data-method" not in page
    assert "(acceptance=0.8): what methods cost at given rates" in page
    assert "Figures from bench.json. Made by" in page


def test_bench_writes_the_page_of_what_it_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    results, path = tmp_path / "bench.json", tmp_path / "bench.html"
    run("bench", str(tiny_bundle), "--methods", "s:4", *FEW, "--json", str(results), "--html", str(path))
    page = path.read_text(encoding="utf-8")
    for row in json.loads(results.read_text(encoding="utf-8"))["rows"]:
        assert f"<strong>{row['bytes_per_s']:,.0f}</strong>" in page
    assert 'data-method="s:4"' in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--bench", "bench.json", "--methods", "ar"), "error: --methods: found it with --bench, expected one of them"),
        (("--methods", "nonsense"), "error: method 'nonsense': unknown"),
        (("--against", "nonsense"), "error: backend: found 'nonsense'"),
        (("--bench", "missing.json"), "error: missing.json: cannot be read"),
    ],
)
def test_wrong_options_of_report(tiny_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    assert error("report", str(tiny_bundle), str(tmp_path / "out.html"), *arguments).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_wrong_targets_are_found_before_anything_is_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "found a folder, expected the name of a file" in error("report", str(tiny_bundle), str(tmp_path))
    assert "found a folder, expected the name of a file" in error("bench", str(tiny_bundle), "--html", str(tmp_path))
    inside = str(tiny_bundle / "report.html")
    assert "found a bundle as its folder" in error("report", str(tiny_bundle), inside)


def test_page_is_about_one_text_at_a_time(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--html", str(tmp_path / "bench.html"))
    assert "--html: found it with --streams" in error("bench", str(tiny_bundle), "--streams", "1,2", *options)
    assert "--html: found it without a bundle" in error("bench", "--url", "http://127.0.0.1:1", *options)
