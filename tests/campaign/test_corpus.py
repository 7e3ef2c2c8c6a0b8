"""What once failed in the campaign fails no more: every recipe of the corpus ends in one error, or in right bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared_files import SharedFiles

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
ENTRIES = sorted(f"{path.parent.name}/{path.stem}" for path in CORPUS.glob("*/*.json"))


@pytest.fixture(scope="session")
def failures(shared_files: SharedFiles, tiny_checkpoint: Path, tiny_bundle: Path) -> dict[str, list[str]]:
    """Failures of every entry, replayed once per test run in processes of their own: some entries used to crash."""

    def replay(folder: Path) -> None:
        fixtures = folder / "fixtures"
        fixtures.mkdir(parents=True)
        shutil.copytree(tiny_checkpoint, fixtures / "checkpoint")
        shutil.copytree(tiny_bundle, fixtures / "bundle")
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
        command = (sys.executable, "-m", "campaign", "--corpus", "--folder", str(folder))
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (folder / "failures.json").write_text(done.stdout, encoding="utf-8")

    found = shared_files.make("campaign", replay) / "failures.json"
    return dict(json.loads(found.read_text(encoding="utf-8")))


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_failed_before_fails_no_more(entry: str, failures: dict[str, list[str]]) -> None:
    assert "\n".join(failures[entry]) == ""


def test_every_entry_names_what_it_broke() -> None:
    assert ENTRIES
    for path in CORPUS.glob("*/*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        assert set(data) - {"expected"} == {"part", "broke", "recipe"}, path
        assert data["broke"].strip(), path
        assert data.get("expected", "ok") in ("ok", "refused"), path
