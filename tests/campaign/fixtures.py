"""Makes what tries read: a small checkpoint, its bundle, and whatever parts ask for; once per campaign."""

from __future__ import annotations

import shutil
from multiprocessing import get_context
from pathlib import Path

from campaign.part import Part

from fastblt.export.bundle_writer import export_bundle
from fastblt.models.formats.convert import convert
from fastblt.models.formats.open import open_checkpoint

#: What every part finds in the folder of fixtures: a checkpoint of this project's layout, and the bundle made of it.
CHECKPOINT, BUNDLE = "checkpoint", "bundle"


def prepare(fixtures: Path, parts: list[Part]) -> None:
    """Make what is not there yet, in another process: libraries that have run start threads, and those do not fork."""
    process = get_context("fork").Process(target=_prepare, args=(fixtures, parts))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"campaign: the fixtures could not be made in {fixtures}")


def _prepare(fixtures: Path, parts: list[Part]) -> None:
    fixtures.mkdir(parents=True, exist_ok=True)
    if not (fixtures / CHECKPOINT).exists():
        convert(open_checkpoint("random:tiny"), fixtures / CHECKPOINT, "fastblt")
    if not (fixtures / BUNDLE).exists():
        export_bundle(fixtures / CHECKPOINT, fixtures / BUNDLE, verify=False)
    for part in parts:
        part.prepare(fixtures)


def copy_of(fixtures: Path, name: str, folder: Path) -> Path:
    """Return a copy of a fixture's folder in ``folder``; a try may change it."""
    return Path(shutil.copytree(fixtures / name, folder / name))
