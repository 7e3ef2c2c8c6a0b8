"""Lets calls to the file system fail under every command: an error is one line, and what was there stays."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from campaign.command_inputs import prepare_commands, random_stage
from campaign.part import Counts, Limits, Place, Recipe, failed
from campaign.stage import Reference, Stage, plain
from campaign.warm_commands import READING, WRITING, Ended, Rule, build_shim, warm_commands

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Call -> what it may fail with.
_ERRORS = {
    "open": (errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EROFS, errno.EINTR),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC, errno.EACCES),
    "close": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EACCES, errno.EROFS),
    "remove": (errno.EIO, errno.EACCES),
    "link": (errno.EPERM, errno.EMLINK, errno.ENOSPC),
    "size": (errno.ENOSPC, errno.EIO),
    "copy": (errno.ENOSPC, errno.EIO),
    "mode": (errno.EPERM, errno.EIO),
    "open-read": (errno.EIO, errno.EACCES, errno.EMFILE),
    "read": (errno.EIO, errno.EINTR),
    "map": (errno.ENOMEM, errno.EACCES),
    "list": (errno.EIO, errno.EACCES),
    "stat": (errno.EIO, errno.EACCES),
}
#: Calls whose failure a command may ignore if what it writes is whole: there is another way (two folders that cannot
#: swap names in one call do so in two), or nothing to save.
_DISPENSABLE = {"remove", "link", "mode", "copy", "stat", "list", "map", "open-read", "close", "mkdir", "rename"}
#: Calls whose failure may prevent a command from cleaning up.
_CLEANS_UP = {"remove", "close", "list", "open-read", "stat"}
#: Calls that can be cut short.
_SHORT = ("write", "copy", "read")
#: What needs space, when there is none any more.
_NEEDS_SPACE = ("open", "write", "mkdir", "size", "copy", "fsync")


@dataclass(frozen=True)
class Fault:
    """Specifies a fault."""

    reading: bool
    """Among what is read, not what is written."""
    calls: tuple[str, ...]
    action: str
    value: int
    nth: int
    sticky: bool
    chance: float
    seed: int

    def rule(self, stage: Stage) -> Rule:
        """Return the rule of the shim."""
        folder = stage.inputs if self.reading else stage.folder
        return Rule(folder, self.calls, self.action, self.value, self.nth, self.sticky, self.chance, self.seed)

    @property
    def harmless(self) -> bool:
        """Return whether a command can go on as if nothing had been."""
        return self.action == "short" or self.value == errno.EINTR


class Faults:
    """Injects errors and short writes into one command a try."""

    name = "faults"
    summary = "ENOSPC, EIO and other errors of the file system, short writes and reads, under every command that writes"
    weight = 3.0
    limits = Limits(processor_seconds=60.0, wall_seconds=400.0, memory_bytes=64 * 2**30)
    at_once = False

    def prepare(self, fixtures: Path) -> None:
        """Make inputs, and run every command twice."""
        prepare_commands(fixtures)

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Run one command under one fault."""
        stage, reference = random_stage(rng, place)
        fault = _fault(rng, reference)
        recipe: Recipe = {"command": stage.arguments(), "replacing": stage.replacing, "fault": vars(fault)}
        place.announce(recipe)
        ended = stage.run(warm_commands(build_shim(place.fixtures)), rule=fault.rule(stage))
        counts = _judge(stage, fault, ended)
        if not counts.failures:
            shutil.rmtree(place.scratch, ignore_errors=True)
        return counts


def _fault(rng: random.Random, reference: Reference) -> Fault:
    reading = rng.random() < 0.3 and len(reference.reads) > 0
    calls = reference.reads if reading else reference.calls
    kind = rng.random()
    seed = rng.randrange(1, 2**31)
    if kind < 0.1 and not reading:  # the disk is full from some point on
        needs = [number for number, call in enumerate(calls) if call.split(" ")[0] in _NEEDS_SPACE]
        return Fault(False, _NEEDS_SPACE, "error", rng.choice(_FULL), rng.randint(1, len(needs)), True, 0.0, seed)
    if kind < 0.2:
        every = READING if reading else WRITING
        return Fault(reading, tuple(every), "error", errno.EIO, 0, False, 2.0 / len(calls), seed)
    if kind < 0.3:
        names = tuple(name for name in _SHORT if (name == "read") == reading)
        return Fault(reading, names, "short", 0, 0, False, rng.choice([0.1, 1.0]), seed)
    name, nth = _chosen(rng, calls)
    return Fault(reading, (name,), "error", rng.choice(_ERRORS[name]), nth, False, 0.0, seed)


def _chosen(rng: random.Random, calls: tuple[str, ...]) -> tuple[str, int]:
    """Return a call's kind and its number among its kind: every kind of call to every file is as likely."""
    groups: dict[str, list[int]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for call in calls:
        kind = call.split(" ")[0]
        seen[kind] += 1
        groups[call].append(seen[kind])
    chosen = rng.choice(list(groups))
    return chosen.split(" ")[0], rng.choice(groups[chosen])


def _judge(stage: Stage, fault: Fault, ended: Ended) -> Counts:
    """Return what is to be said of a command under a fault, and of what it has left."""
    met = [line.split(" ", 2)[1] for line in ended.met]
    error = os.strerror(fault.value) if fault.action == "error" else "cut short"
    what = f"{stage.command.name}, {'/'.join(sorted(set(met))) or 'no call'}: {error}"
    detail = f"{fault}\n{ended.met[:5]}\n{ended.status} {ended.stderr[-3000:]}"
    counts = Counts(tries=1, figures={"calls that failed": len(met)})
    if ended.late:
        return failed("hang", f"{what}: still running", detail)
    if ended.status < 0:
        return failed("crash", f"{what}: ended by signal {-ended.status}", detail)
    if ended.status not in (0, 1):
        return failed("other", f"{what}: exit status {ended.status}", detail)
    if "Traceback" in ended.stderr:
        return failed("traceback", f"{what}: {ended.stderr.strip().splitlines()[-1]}", detail)
    state = stage.state()
    if state not in ({"old", "new"} if stage.before() else {"old", "new", "absent"}):
        return failed("lost files", f"{what}: target is {state}", detail)
    left = [*stage.leftovers(), *stage.scratch_left()]
    if left and not _CLEANS_UP & set(met):
        return failed("lost files", f"{what}: left {plain(left)}", detail)
    if ended.status == 0:
        if state != "new":
            return failed("lost files", f"{what}: exit status 0, but the target is {state}", detail)
        if met and not fault.harmless and set(met) - _DISPENSABLE:
            return failed("other", f"{what}: ignored", detail)
        counts.ok = 1
        return counts
    said = stage.unusual_lines(ended)
    if len(said) != 1 or not said[0].startswith("error: "):
        return failed("other", f"{what}: {len(said)} lines on stderr, expected one error", detail)
    if fault.action == "short":
        return failed("other", f"{what}: failed, expected another call for the rest", detail)
    places = (str(stage.folder), str(stage.inputs), stage.command.target, *stage.command.keeps)
    if not any(place in said[0] for place in places):
        return failed("other", f"{what}: the error names no file", detail)
    if error.lower() not in said[0].lower():
        counts.figures["errors without the system's reason"] = 1
    counts.refused = 1
    return counts
