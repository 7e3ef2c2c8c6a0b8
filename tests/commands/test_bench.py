"""The command bench: its tables, its report and the replay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fakes.bench_measurement import EAGER, ORT, measurement
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.bench_tables import bench_tables
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.bench.run import BenchReport, BenchRequest


def bench(bundle: Path, *options: str) -> str:
    arguments = ["bench", str(bundle), "--provider", "cpu", "--threads", "1", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def table_rows(text: str) -> list[list[str]]:
    """Words of the lines that are rows of a table, without the backend."""
    return [line.split()[1:] for line in text.splitlines() if line.startswith((ORT, EAGER))]


def test_command_prints_tables_and_writes_json(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    options = ("--methods", "ar,s:4,d:4@one", "--against", "eager", "--prompts", "2", "--max-new-bytes", "24")
    text = bench(tiny_bundle, *options, "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = report["rows"]
    assert [(row["backend"], row["method"]) for row in rows] == [
        (ORT, "ar"),
        (ORT, "s:4"),
        (ORT, "d:4@one"),
        (EAGER, "ar"),
    ]
    assert [row["lossless"] for row in rows] == [True, True, False, True]
    assert all(row["identical_to_ar"] for row in rows if row["lossless"])
    assert report["replay"] is None
    assert all(row["replay"] is None for row in rows)
    assert all(row["times_limit"] > 0 and row["limit_gb_per_s"] > 0 for row in rows)
    lines = table_rows(text)
    speed, cost = lines[:4], lines[4:]
    assert [line[0] for line in speed] == [line[0] for line in cost] == ["ar", "s:4", "d:4@one", "ar"]
    assert f"{rows[1]['bytes_per_s']:.1f}" in speed[1]
    assert ["yes" in line for line in speed] == [True, True, False, True]
    assert "NO" not in text
    assert f"{rows[2]['nfe_decoder_per_512'] / 512:.2f}" == cost[2][1]
    assert cost[1][4:8] == [
        f"{100 * rows[1]['estimated_saving']:.0f}",
        "%",
        f"{100 * rows[1]['measured_saving']:.0f}",
        "%",
    ]
    (described,) = [line for line in text.splitlines() if line.startswith("tiny (fp32) on cpu: ")]
    assert "held-out prompts: 2 of 64 bytes; 48 new bytes per row" in described
    assert "memory" not in text
    assert "replay" not in text.lower()


def test_command_replays(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    given = "acceptance=0.8,patch=3,d:4@0.7/steps=1.5"
    options = ("--methods", "s:4,d:4@0.7,dv:4@one", "--prompts", "2", "--max-new-bytes", "150", "--replay", given)
    text = bench(tiny_bundle, *options, "--json", str(path))
    assert text.startswith(f"REPLAY ({given}): ")
    assert text.splitlines()[-1].endswith("replay.")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["replay"] == given
    rows = {row["method"]: row for row in report["rows"]}
    for row in rows.values():
        assert row["identical_to_ar"] is None
        assert row["replay"]["wanted_patch"] == 3
        assert row["replay"]["patch"] == pytest.approx(3, rel=0.05)
    assert rows["s:4"]["replay"]["acceptance"] == rows["s:4"]["acceptance"] == pytest.approx(0.8, abs=0.05)
    assert rows["dv:4@one"]["replay"]["acceptance"] == pytest.approx(0.8, abs=0.05)
    assert rows["d:4@0.7"]["replay"]["steps"] == pytest.approx(1.5, abs=0.05)
    assert rows["d:4@0.7"]["replay"]["wanted_acceptance"] is None
    rates = {line[0]: line[1:] for line in table_rows(text)[8:]}
    assert rates["s:4"][:2] == ["80.00", "%"]
    assert "yes" not in text
    assert "NO" not in text


def test_command_refuses_replay_that_lacks_a_figure(tiny_bundle: Path) -> None:
    arguments = ["bench", str(tiny_bundle), "--methods", "s:4", "--replay", "patch=2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --replay: found no acceptance for s:4, expected ")
    assert len(result.stderr.splitlines()) == 1


def test_command_takes_prompts_longer_than_default_capacity(tiny_bundle: Path) -> None:
    text = bench(tiny_bundle, "--methods", "ar", "--prompts", "1", "--prompt-bytes", "5000", "--max-new-bytes", "2")
    assert "held-out prompts: 1 of 5000 bytes" in text


def test_longest_names_and_largest_figures_fit() -> None:
    base = measurement()
    rows = [
        dataclasses.replace(
            row, backend="tensorrt-rtx", method="dv:16@eb1.5+partial", bytes_per_s=123456.7, ratio_to_ar=12.34,
            acceptance=1.0, replay=dict.fromkeys(("wanted_acceptance", "acceptance", "wanted_steps", "steps"), 1.0),
        )
        for row in base.rows()
    ]  # fmt: skip
    report = BenchReport(BenchRequest(), base.plan, "tiny", "fp32", device_info(1), rows)
    assert len(list(bench_tables(report))) == 3  # the tables are measured at the end of the test
