"""Makes what the commands of a campaign read, and what is known of each command that nothing disturbs."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from campaign import toy_corpus
from campaign.fixtures import BUNDLE, CHECKPOINT
from campaign.part import Place
from campaign.stage import Reference, Stage, tree
from campaign.warm_commands import READING, WRITING, Rule, WarmCommands, build_shim
from campaign.writing_commands import COMMANDS, INPUTS, WritingCommand

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.presets import preset
from fastblt.models.training.loop import initialize

_REFERENCES = "references"


def prepare_commands(fixtures: Path) -> None:
    """Make inputs and references, unless they are there."""
    shim = build_shim(fixtures)
    inputs, references = fixtures / INPUTS, fixtures / _REFERENCES
    if references.exists():
        return
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    commands = WarmCommands(shim)
    _make_inputs(commands, fixtures, inputs)
    partial = fixtures / "partial-references"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for command in COMMANDS:
        found = _reference(commands, command, inputs, partial)
        if isinstance(found, Reference):
            found.save(partial / f"{command.name}.json")
        else:
            print(f"campaign: {command.name} is left out: {found}", file=sys.stderr)
    commands.close()
    partial.rename(references)


def random_stage(rng: random.Random, place: Place) -> tuple[Stage, Reference]:
    """Set up the folder of a command that runs on this machine, perhaps with a target to replace."""
    known = _known(place.fixtures / _REFERENCES)
    command, reference = rng.choices(known, [each.weight for each, _ in known])[0]
    replacing = bool(command.old) and rng.random() < 0.5
    stage = Stage(command, place.fixtures / INPUTS, place.scratch / "w", reference, replacing)
    stage.set_up()
    return stage, reference


@cache
def _known(folder: Path) -> list[tuple[WritingCommand, Reference]]:
    found = [(command, folder / f"{command.name}.json") for command in COMMANDS]
    return [(command, Reference.load(path)) for command, path in found if path.exists()]


def _make_inputs(commands: WarmCommands, fixtures: Path, inputs: Path) -> None:
    notes = inputs.with_name("inputs-notes")

    def run(*arguments: str) -> None:
        ended = commands.run(arguments, inputs, notes, toy=True)
        if ended.status != 0:
            raise RuntimeError(f"fastblt {' '.join(arguments)}: found exit status {ended.status}, {ended.stderr}")

    for name in (CHECKPOINT, BUNDLE):
        shutil.copytree(fixtures / name, inputs / name)
    (inputs / "cache").mkdir()
    (inputs / "old.json").write_text('{"old": true}\n', encoding="utf-8")
    toy_corpus.write_recipe(inputs / "recipe.json")
    tiny = preset("tiny")
    save_checkpoint(
        inputs / "blt-checkpoint", _random_model(dataclasses.replace(tiny, decoder_input="encoder", block_size=0))
    )
    run("export", CHECKPOINT, "other-bundle", "--dtype", "fp16")
    run("pack", BUNDLE, "archive.tar.gz")
    run("pack", "other-bundle", "other.tar.gz")
    run("data", "corpus", "--cache", "cache")
    run("train", "recipe.json", "--out", "stopped-run", "--data", "corpus", "--threads", "1", "--max-seconds", "0.3")
    shutil.copytree(inputs / BUNDLE, inputs / "engines-bundle")
    ended = commands.run(["compile", "engines-bundle", "--sm", "86", "--max-bytes", "512"], inputs, notes)
    if ended.status != 0:
        print(f"campaign: no engines to replace: {ended.stderr.strip()}", file=sys.stderr)


def _random_model(config: object) -> Blt:
    torch.manual_seed(0)
    model = Blt(config)  # type: ignore[arg-type]
    initialize(model)
    return model.eval().requires_grad_(False)


def _reference(commands: WarmCommands, command: WritingCommand, inputs: Path, folder: Path) -> Reference | str:
    """Return what is known of a command; or its last words, if it does not work here."""
    digests, calls, ended, scratch = [], [], None, []
    for turn in range(2):
        stage = Stage(command, inputs, folder / f"{command.name}-{turn}", None, replacing=False)
        stage.set_up()
        rule = Rule(inputs, READING, "count") if turn == 0 else Rule(stage.folder, WRITING, "count")
        ended = stage.run(commands, rule=rule)
        if ended.status != 0:
            return ended.stderr.strip()
        state = stage.state(finished=True)
        if state != "new" or stage.leftovers():
            raise RuntimeError(
                f"fastblt {command.name}: found {state} and {stage.leftovers()} though nothing disturbed it"
            )
        digests.append(tree(stage.target))
        scratch = stage.scratch_left()
        calls.append(tuple(plain_calls(ended.met, rule.folder)))
        for path in (stage.folder, stage.notes):
            shutil.rmtree(path)
    assert ended is not None
    same = digests[0] if digests[0] == digests[1] else {}
    return Reference(
        seconds=ended.seconds,
        names=tuple(digests[0]),
        digests=same,
        reads=calls[0],
        calls=calls[1],
        stderr=tuple(ended.stderr.splitlines()),
        scratch=tuple(scratch),
    )


def plain_calls(met: Iterable[str], folder: Path) -> list[str]:
    """Return what the shim counted as ``CALL NAME``, with the parts of names cut that differ each time."""
    lines = []
    for line in met:
        _, call, path = line.split(" ", 2)
        name = os.path.relpath(path, folder)
        lines.append(f"{call} {re.sub(r'[.][0-9]+[.][a-z0-9_]+', '', name)}")
    return lines
