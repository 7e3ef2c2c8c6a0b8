"""`fastblt fleet capacity`: reports of `bench --url` in, replicas and prices out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.exit_status import USAGE
from fastblt.runtime.fleet.capacity.bench_report import read_report
from fastblt.runtime.fleet.capacity.figures import FiguresError

SMALL = ["--users", "60", "--sequences", "4", "--think", "1", "--first-byte", "3", "--speed", "5"]


def row(clients: int, rate: float, method: str | None = None, **changes: Any) -> dict[str, Any]:
    found = {
        "endpoint": "http://h/v1/completions",
        "clients": clients,
        "method": method,
        "errors": {},
        "bytes_per_s": rate,
        "first_byte_ms_p50": 50.0 * clients,
    }
    return {**found, **changes}


def report(path: Path, *rows: dict[str, Any], **changes: Any) -> Path:
    data = {"device": {"cpu": "a processor"}, "prompts": 4, "prompt_bytes": 400, "rows": list(rows), **changes}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    return app([str(each) for each in ("fleet", "capacity", *arguments)], standalone_mode=False)


def test_a_report_becomes_figures(tmp_path: Path) -> None:
    path = report(tmp_path / "r.json", row(4, 300.0, "ar"), row(1, 200.0, "ar"), row(1, 400.0, "s:8"))
    found = read_report(path, 8, 2.5)
    assert (found.streams, found.bytes_per_second) == ((1, 4), (200.0, 300.0))
    assert found.prompt_bytes_per_second == pytest.approx(100 / 0.05)
    assert (found.places, found.price_per_hour) == (8, 2.5)
    assert read_report(path, 8, 1.0, "s:8").bytes_per_second == (400.0,)
    of_two = report(tmp_path / "two.json", row(1, 200.0), row(1, 9.0, endpoint="http://fifo/v1/completions"))
    assert read_report(of_two, 8, 1.0).bytes_per_second == (200.0,)


def test_replicas_and_prices_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = report(tmp_path / "r.json", row(1, 200.0), row(4, 300.0))
    run(path, *SMALL, "--price", 0.5, "--json", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert f"{plan['price_per_million_bytes']:,.4f}" in printed
    assert plan["price_per_hour"] == 0.5 * plan["replicas"]
    assert plan["outcome"]["first_byte_p95"] <= 3.0 * 1.2
    assert "60 users" in printed


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([], {}, r"rows: found \[\], expected the rows of a report of"),
        ([row(2, 10.0)], {}, "begin with 1"),
        ([row(1, 10.0, errors={"HTTP 500": 1})], {}, "found errors among the requests"),
        ([row(1, 0.0)], {}, "greater than 0"),
        ([row(1, 10.0, first_byte_ms_p50=None)], {}, "expected a report of"),
        ([row(1, 10.0)], {"prompts": 0}, "greater than 0"),
        ([{"clients": 1}], {}, "expected a report of"),
        ([row(1, 10.0)], {"rows": 7}, "rows: found 7, expected the rows of a report of"),
        ([row(1, 10.0)], {"rows": [5]}, "endpoint: found 5 without it, expected a report of"),
        ([row(1, 10.0)], {"device": None}, "cpu: found None without it, expected a report of"),
        ([row(1, -5.0)], {}, "bytes_per_s: found -5.0, expected a report of .* greater than 0"),
        ([row(1, 1e300)], {}, "bytes_per_s: found 1e[+]300, expected .* at most 1e[+]12"),
        ([row(1, 10.0, bytes_per_s="fast")], {}, "bytes_per_s: found 'fast', expected a report of .* with a number"),
        (
            [row(10**300, 10.0, first_byte_ms_p50=1.0)],
            {},
            "clients: found 'an integer of 997 bits', expected",
        ),
    ],
)
def test_other_files_are_refused_by_name(
    rows: list[dict[str, Any]], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = report(tmp_path / "r.json", *rows, **changes)
    with pytest.raises(FiguresError, match=message) as found:
        run(path)
    assert str(found.value).startswith(f"{path}: ")
    assert "\n" not in str(found.value)


def test_users_that_cannot_be_are_usage_errors(tmp_path: Path) -> None:
    path = report(tmp_path / "r.json", row(1, 10.0))
    result = CliRunner().invoke(app, ["fleet", "capacity", str(path), "--turns", "0.5"])
    assert result.exit_code == USAGE


def test_help_lists_the_commands_below(capsys: pytest.CaptureFixture[str]) -> None:
    app(["fleet", "--help"], standalone_mode=False)
    assert "capacity" in capsys.readouterr().out
