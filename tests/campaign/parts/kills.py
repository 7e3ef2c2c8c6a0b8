"""Ends writing commands at random moments and at chosen calls to the file system: nothing may be lost or half done."""

from __future__ import annotations

import random
import shutil
import signal
from collections import defaultdict
from pathlib import Path

from campaign.command_inputs import prepare_commands, random_stage
from campaign.part import Counts, Limits, Place, Recipe, failed
from campaign.stage import Reference, Stage, plain
from campaign.warm_commands import WRITING, Ended, Rule, build_shim, warm_commands

#: Signal -> exit status of a command that it ends, as shells report it.
_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
#: Commands of more than this many seconds come to their end after one of this many disturbed ones.
_SLOW_SECONDS, _SLOW_SHARE = 1.0, 3


class Kills:
    """Sends SIGKILL, SIGINT and SIGTERM; then the same command must come to its end and leave nothing else behind."""

    name = "kills"
    summary = "SIGKILL, SIGINT and SIGTERM at any moment of every command that writes"
    weight = 3.0
    limits = Limits(processor_seconds=60.0, wall_seconds=400.0, memory_bytes=64 * 2**30)
    at_once = False

    def prepare(self, fixtures: Path) -> None:
        """Make inputs, and run every command twice."""
        prepare_commands(fixtures)

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Disturb one command up to three times in the same folder, then let it come to its end."""
        stage, reference = random_stage(rng, place)
        total = Counts()
        again = False
        for _ in range(rng.randint(1, 3)):
            recipe = _recipe(rng, reference)
            place.announce({"command": stage.arguments(again=again), "replacing": stage.replacing, **recipe})
            earlier = stage.leftovers()  # of a process that was killed
            ended = _run(stage, recipe, again=again)
            total.add(_judge(stage, recipe, ended, earlier, again=again))
            again = True
            if total.failures:
                return total
        if reference.seconds < _SLOW_SECONDS or rng.randrange(_SLOW_SHARE) == 0:
            ended = stage.run(warm_commands(build_shim(stage.inputs.parent)), again=True)
            total.add(_judge_end(stage, ended))
        if not total.failures:
            shutil.rmtree(place.scratch, ignore_errors=True)
        return total


def _recipe(rng: random.Random, reference: Reference) -> Recipe:
    """Return what to do to a command, in plain JSON."""
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    if rng.random() < 0.4:
        return {"signal": int(number), "after": round(rng.uniform(0, 1.1 * reference.seconds), 4)}
    return {"signal": int(number), "where": rng.choice(["before", "after"]), "nth": chosen_call(rng, reference)}


def chosen_call(rng: random.Random, reference: Reference) -> int:
    """Return the number of a call, from 1: each kind of call to each file is as likely, however often it occurs."""
    groups = defaultdict(list)
    for number, call in enumerate(reference.calls, 1):
        groups[call].append(number)
    return rng.choice(groups[rng.choice(list(groups))])


def _run(stage: Stage, recipe: Recipe, *, again: bool) -> Ended:
    commands = warm_commands(build_shim(stage.inputs.parent))
    if "after" in recipe:
        return stage.run(commands, again=again, signal_number=recipe["signal"], after=recipe["after"])
    rule = Rule(stage.folder, WRITING, recipe["where"], recipe["signal"], recipe["nth"])
    return stage.run(commands, again=again, rule=rule)


def _judge(stage: Stage, recipe: Recipe, ended: Ended, earlier: list[str], *, again: bool) -> Counts:
    """Return what is to be said of a disturbed command and of what it has left."""
    number = signal.Signals(recipe["signal"])
    what = f"{stage.command.name}, {number.name}"
    counts = Counts(tries=1, figures={f"kills with {number.name}": 1})
    if ended.late:
        return failed("hang", f"{what}: still running", ended.stderr)
    if number != signal.SIGKILL:
        counts.figures["max seconds from signal to end"] = ended.seconds - recipe.get("after", ended.seconds)
    state = stage.state()
    allowed = {"old", "new"} if stage.before() else {"old", "new", "absent"}
    if state not in allowed:
        return failed("lost files", f"{what}: target is {state}", f"{recipe}\n{ended}\n{stage.leftovers()}")
    untouched = ended.status == 0 and state == "new"
    if again and state == "new" and refuses_to_replace(ended):
        counts.figures["came after the target was complete"] = 1
    elif untouched:
        counts.figures["came to their end before the signal"] = 1
    elif number == signal.SIGKILL:
        if ended.status != -signal.SIGKILL:
            return failed("other", f"{what}: exit status {ended.status}", f"{recipe}\n{ended}")
    elif ended.status not in (_STATUS[number], -number):
        return failed("other", f"{what}: exit status {ended.status}, expected {_STATUS[number]}", f"{recipe}\n{ended}")
    if number != signal.SIGKILL:
        said = stage.unusual_lines(ended)
        if len(said) > 1 or any("Traceback" in line for line in said):
            return failed("traceback", f"{what}: {len(said)} lines on stderr", ended.stderr)
        left = [name for name in [*stage.leftovers(), *stage.scratch_left()] if not _is_of(earlier, name)]
        if left:
            return failed("lost files", f"{what}: left {plain(left)}", f"{recipe}\n{ended}")
    counts.ok = 1
    return counts


def _judge_end(stage: Stage, ended: Ended) -> Counts:
    """Return what is to be said of a command that came to its end after others were killed in the same folder."""
    counts = Counts(tries=1, figures={"came to their end after kills": 1})
    what = f"{stage.command.name} after kills"
    if ended.status != 0:
        if stage.state(finished=True) == "new" and refuses_to_replace(ended):
            counts.refused = 1  # a kill came after the rename: the target is there, as it should be
        else:
            return failed("other", f"{what}: exit status {ended.status}", f"{ended}\n{stage.leftovers()}")
    elif (state := stage.state(finished=True)) != "new":
        return failed("lost files", f"{what}: target is {state}", str(ended))
    if left := stage.leftovers():
        return failed("lost files", f"{what}: left {plain(left)}", str(ended))
    counts.ok = 1 - counts.refused
    return counts


def refuses_to_replace(ended: Ended) -> bool:
    """Decide whether a command failed because its target was complete already."""
    words = ("exists", "--force", "expected a new name", "expected a new folder")
    return ended.status == 1 and ended.stderr.startswith("error: ") and any(word in ended.stderr for word in words)


def _is_of(leftovers: list[str], name: str) -> bool:
    """Decide whether a name is one of some leftovers, or inside of one of them."""
    return any(name == each or name.startswith(f"{each}/") for each in leftovers)
