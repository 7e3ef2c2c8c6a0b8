"""What a report consists of where matplotlib is missing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastblt.calibration import report


def test_report_without_matplotlib_says_that_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    monkeypatch.setattr(report, "_markdown", lambda result: iter(["# tiny"]))
    result: Any = SimpleNamespace(to_dict=dict)
    report.write_report(tmp_path, result)
    assert sorted(path.name for path in tmp_path.iterdir()) == [report.JSON_FILE, report.MARKDOWN_FILE]
    text = (tmp_path / report.MARKDOWN_FILE).read_text(encoding="utf-8")
    assert text == "# tiny\nThere is no picture: matplotlib is not installed (pip install matplotlib).\n"
