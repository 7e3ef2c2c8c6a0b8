"""Opens, inspects, loads and exports checkpoints of every layout whose files were changed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from campaign import foreign_checkpoints
from campaign.changes import apply, pth_file
from campaign.judge import Judge
from campaign.part import Counts, Limits, Place, Recipe
from campaign.recipes import MakesRecipes

from fastblt.commands.inspect_facts import read_facts
from fastblt.export.bundle_writer import export_bundle
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.formats.open import open_checkpoint

_FIXTURE = "checkpoints"


class Checkpoints(MakesRecipes):
    """Changes a checkpoint of one layout."""

    name = "checkpoints"
    summary = "changed configurations, indices, safetensors and pickles of every layout: open, inspect, load, export"
    weight = 2.0
    limits = Limits(processor_seconds=10.0)  # an export of a tiny model takes two

    def prepare(self, fixtures: Path) -> None:
        """Write a model in every layout."""
        if not (fixtures / _FIXTURE).exists():
            foreign_checkpoints.write(fixtures / _FIXTURE)

    def recipe(self, rng: random.Random, fixtures: Path) -> Recipe:
        """Choose one to three changes of one layout's files."""
        layout = rng.choice(foreign_checkpoints.FOLDERS)
        folder = fixtures / _FIXTURE / layout
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        chosen = rng.choices(files, k=rng.choice((1, 1, 1, 2, 3)))
        changes = [apply.propose(rng, folder, file) for file in chosen]
        return {"layout": layout, "changes": changes, "load": rng.random() < 0.3, "export": rng.random() < 0.03}

    def run(self, recipe: Recipe, place: Place) -> Counts:
        """Change a copy, and go every way into it."""
        folder = place.scratch / "model"
        shutil.copytree(place.fixtures / _FIXTURE / recipe["layout"], folder, copy_function=shutil.copyfile)
        apply.apply(folder, recipe["changes"])
        judge = Judge()
        opened = judge.call(open_checkpoint, folder)
        judge.call(read_facts, str(folder), 64)
        if opened is not None and recipe.get("load"):
            judge.call(load_checkpoint, folder)
        if opened is not None and recipe.get("export"):
            bundle = place.scratch / "bundle"
            if judge.call(export_bundle, folder, bundle, verify=False) is None and bundle.exists():
                judge.fail("lost files", "an export that failed has left a bundle")
        if (place.scratch / pth_file.RAN).exists():
            judge.fail("other", "a pickle has run code")
        return judge.result()
