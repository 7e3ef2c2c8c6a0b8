"""Runs commands with argument vectors of every kind: exit status 0, 1 (one line) or 2 (usage), never a traceback."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from campaign.command_line import run_command
from campaign.fixtures import BUNDLE, CHECKPOINT
from campaign.judge import Judge
from campaign.part import Counts, Limits, Place, Recipe
from campaign.recipes import MakesRecipes

from fastblt.cli import COMMANDS

#: Without `data`, which builds a corpus for a minute, whatever folder it is given.
_ALL = tuple(command for command in COMMANDS if command != "data")
#: Commands that end within a second, whatever they are asked for; the others get no argument that they can work with.
_QUICK = ("inspect", "generate", "pack", "unpack", "convert", "doctor")
_WORDS = (
    *("bundle", "checkpoint", "missing", ".", "..", "", "-", "--", "[/x]", "[bold]", "\x1b[31m", "é", "\ud800", "a/b"),
    *(
        "random:tiny",
        "random:",
        "random:nothing",
        "file",
        "x" * 300,
        "a\x00b",
        "bundle/manifest.json",
        "out",
        "hf://a/b",
    ),
    *("ar", "s:4", "auto", "d:4@one", "0", "1", "-1", "8", "nan", "1e400", "99999999999999999999", "hello", "x.tar"),
)
_OPTIONS = (
    *("--json", "--max-bytes", "--max-new-bytes", "--method", "--threads", "--temperature", "--seed", "--stop", "-x"),
    *(
        "--to",
        "--dtype",
        "--force",
        "--patcher",
        "--provider",
        "--backend",
        "--engines",
        "--layers",
        "--top-p",
        "--help",
    ),
    *("--revision", "--verify", "--sign", "--version", "--show", "--nothing"),
)


class Commands(MakesRecipes):
    """Runs the command line inside the worker."""

    name = "commands"
    summary = "argument vectors of every kind: exit status 0, 1 with one line, or 2"
    limits = Limits(processor_seconds=15.0)

    def recipe(self, rng: random.Random, fixtures: Path) -> Recipe:
        """Choose a command and up to six words."""
        if rng.random() < 0.8:
            command, words = rng.choice(_QUICK), _WORDS
        else:
            useless = ("bundle", "checkpoint", "random:tiny", "--help")
            command, words = rng.choice(_ALL), tuple(word for word in _WORDS if word not in useless)
        arguments = [rng.choice(words) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
        if command in _QUICK and arguments:
            arguments[0] = rng.choice(("bundle", "bundle", "checkpoint", arguments[0]))
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(_OPTIONS))
        return {"argv": [command, *arguments]}

    def run(self, recipe: Recipe, place: Place) -> Counts:
        """Run the command in a folder that has what the words name."""
        shutil.copytree(place.fixtures / BUNDLE, "bundle")
        shutil.copytree(place.fixtures / CHECKPOINT, "checkpoint")
        Path("file").write_bytes(b"text\n")
        before = {path.name: path.read_bytes() for path in Path("bundle").iterdir()}
        judge = Judge()
        run_command(judge, recipe["argv"])
        changed = {path.name: path.read_bytes() for path in Path("bundle").iterdir()} if Path("bundle").is_dir() else {}
        if changed != before:
            judge.fail("lost files", f"{recipe['argv'][0]} has changed the bundle that it was given")
        return judge.result()
