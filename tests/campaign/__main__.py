"""``make campaign``: tries to break files, processes and text for a while, and reports what broke.

Run it from the root of the repository: ``PYTHONPATH=tests python -m campaign --minutes 10``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

# One thread for each worker; read when the libraries are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from campaign.corpus import parts_of_corpus, replay_corpus
from campaign.fixtures import prepare
from campaign.part import Place
from campaign.registry import PARTS, parts_named
from campaign.report import PartReport, as_json, table, write_failures
from campaign.schedule import Campaign
from campaign.worker import make_try

from fastblt.models.atomic_file import replacing_file


def main() -> int:
    """Run the campaign that the arguments describe, and return 1 if anything failed, else 0."""
    wanted = _arguments()
    # As Ctrl-C: workers are ended on the way out, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(wanted.folder).resolve()
    fixtures = folder / "fixtures"
    parts = parts_named(wanted.parts)
    if wanted.corpus:
        parts = parts_of_corpus(parts)
    if not (wanted.replay or wanted.corpus):
        shutil.rmtree(folder, ignore_errors=True)
    prepare(fixtures, parts)
    if wanted.replay:
        return _replay(wanted.replay, fixtures, folder / "replay")
    if wanted.corpus:
        print(json.dumps(replay_corpus(parts, fixtures, folder), indent=1))
        return 0
    _say(f"campaign: {wanted.minutes:g} min, seed {wanted.seed}, {wanted.jobs} workers")
    for part in parts:
        _say(f"  {part.name}: {part.summary}")
    reports = Campaign(parts, fixtures, folder, wanted.seed, wanted.jobs, _say).run(60 * wanted.minutes)
    _write(folder, reports, wanted)
    _say(table(reports))
    failures = sum(len(report.found) for report in reports)
    place = f"; inputs and recipes are in {folder / 'failures'}" if failures else ""
    _say(f"{failures} failures{place}; {folder / 'report.json'}")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="time to spend")
    parser.add_argument("--seed", type=int, default=1, help="determines every try")
    parser.add_argument("--parts", default="", help=f"some of {','.join(part.name for part in PARTS)}; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--folder", default="build/campaign", help="where to write")
    parser.add_argument("--replay", metavar="PART:SEED:NUMBER", help="make one try again, in this process")
    parser.add_argument("--corpus", action="store_true", help="only replay the corpus; print what came out as JSON")
    return parser.parse_args()


def _replay(which: str, fixtures: Path, scratch: Path) -> int:
    name, seed, number = which.split(":")
    (part,) = parts_named(name)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.chdir(scratch)
    place = Place(fixtures, scratch, lambda recipe: _say(json.dumps(recipe, indent=1)))
    counts = make_try(part, int(seed), int(number), 60.0, place)
    for failure in counts.failures:
        _say(f"{failure.kind}: {failure.what}\n{failure.detail}")
    _say(f"{counts.tries} tries, {counts.ok} ok, {counts.refused} refused; its files are in {scratch}")
    return 1 if counts.failures else 0


def _write(folder: Path, reports: list[PartReport], wanted: argparse.Namespace) -> None:
    write_failures(folder / "failures", reports)
    report = as_json(reports, wanted.seed, wanted.minutes, wanted.jobs)
    with replacing_file(folder / "report.json") as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
