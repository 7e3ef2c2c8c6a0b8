"""Sets up the folder in which a writing command runs, and says what state it is in afterwards."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaign.warm_commands import Ended, WarmCommands
from campaign.writing_commands import WritingCommand

#: Beginnings of names that PyTorch and ONNX Runtime leave in the system's folder for temporary files, now and then.
_OF_LIBRARIES = ("torchinductor_", ".ses")
#: Path below the target -> digest of the content; "" for a folder.
Tree = dict[str, str]


def tree(path: Path) -> Tree:
    """Return the digest of every file of a folder, or of a single file; folders have none."""
    if not path.is_dir():
        return {"": hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else {}
    return {
        str(each.relative_to(path)): "" if each.is_dir() else hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(path.rglob("*"))
    }


@dataclass(frozen=True)
class Reference:
    """Holds what is known of a command that nothing disturbs."""

    seconds: float
    names: tuple[str, ...]
    """Of all files of its target; "" for a file."""
    digests: Tree
    """The target's, if it is the same each time; else empty."""
    calls: tuple[str, ...]
    """What the shim counts of changes below its folder: ``CALL PATH``, temporary names cut."""
    reads: tuple[str, ...]
    """What the shim counts of calls that only look at the inputs."""
    stderr: tuple[str, ...]
    """Lines that it writes to standard error."""
    scratch: tuple[str, ...]
    """What libraries leave in the system's folder for temporary files."""

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(found[name]) for name in ("names", "calls", "reads", "stderr", "scratch")}
        return cls(found["seconds"], digests=found["digests"], **lists)


@dataclass(frozen=True)
class Stage:
    """Is the folder in which a command runs, and what was in it before."""

    command: WritingCommand
    inputs: Path
    folder: Path
    reference: Reference | None
    replacing: bool
    """Whether there was something in the target's place."""

    def set_up(self) -> None:
        """Make the folder with what is there before the command runs."""
        self.folder.mkdir(parents=True)
        source = self.command.old if self.replacing else self.command.starts_with
        if not source:
            return
        if (self.inputs / source).is_dir():
            shutil.copytree(self.inputs / source, self.target)
        else:
            shutil.copyfile(self.inputs / source, self.target)

    @property
    def target(self) -> Path:
        """Return the path that the command writes."""
        return self.folder / self.command.target

    def arguments(self, *, again: bool = False) -> list[str]:
        """Return the command's arguments."""
        added = dict.fromkeys(
            [*(self.command.replaces if self.replacing else ()), *(self.command.again if again else ())]
        )
        both = [*self.command.arguments, *added]
        return [text.replace("{in}", str(self.inputs)) for text in both]

    @property
    def notes(self) -> Path:
        """Return the folder of the command's output, beside the one in which it runs."""
        return self.folder.with_name(f"{self.folder.name}-notes")

    def run(self, commands: WarmCommands, *, again: bool = False, **options: Any) -> Ended:
        """Run the command; options are those of `WarmCommands.run`."""
        scratch = self.notes / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        environment = {"TMPDIR": str(scratch), "HOME": str(self.notes), "XDG_CACHE_HOME": str(self.notes / "cache")}
        return commands.run(
            self.arguments(again=again),
            self.folder,
            self.notes,
            environment=environment,
            toy=self.command.toy,
            **options,
        )

    def scratch_left(self) -> list[str]:
        """Return names of what a command has left in the system's folder for temporary files."""
        usual = self.reference.scratch if self.reference else ()
        found = [each.name for each in (self.notes / "tmp").iterdir() if not each.name.startswith(_OF_LIBRARIES)]
        return sorted(name for name in found if name not in usual)

    def unusual_lines(self, ended: Ended) -> list[str]:
        """Return the lines on standard error that an undisturbed command does not write."""
        usual = self.reference.stderr if self.reference else ()
        return [line for line in ended.stderr.splitlines() if line.strip() and line not in usual]

    def before(self) -> Tree:
        """Return what was in the target's place before."""
        source = self.command.old if self.replacing else self.command.starts_with
        return tree(self.inputs / source) if source else {}

    def state(self, *, finished: bool = False) -> str:
        """Return ``absent``, ``old``, ``new``, or in one line what is wrong with the target."""
        if not self.target.exists():
            return "absent"
        found = tree(self.target)
        if not finished and found and found == self.before():
            return "old"
        try:
            check = self.command.finished if finished else None
            (check or self.command.check)(self.target)
        except Exception as error:
            return f"not whole: {type(error).__name__}: {error}"
        return self.compare(found)

    def compare(self, found: Tree) -> str:
        """Return ``new`` if a target that can be read is what the command writes undisturbed, else what differs."""
        reference = self.reference
        if reference is None or self.command.finished or self.command.starts_with or self.command.varies:
            return "new"
        extra = set(found) ^ set(reference.names)
        if extra:
            return f"not whole: found or missing {', '.join(sorted(extra))}"
        if reference.digests and found != reference.digests:
            return "not whole: content differs from that of a command that nothing disturbed"
        return "new"

    def leftovers(self) -> list[str]:
        """Return names of what lies beside the target, or is temporary inside of it."""
        expected = {self.command.target, *self.command.keeps}
        beside = [each.name for each in self.folder.iterdir() if each.name not in expected]
        inside = [str(each.relative_to(self.folder)) for each in self.folder.rglob("*") if temporary(each.name)]
        return sorted({*beside, *inside})


def plain(names: Iterable[str]) -> str:
    """Return names without the digits and random parts of temporary names, so that equal findings are equal lines."""
    return ", ".join(sorted({re.sub(r"[.][0-9]+[.][a-z0-9_]+|[0-9]+", "*", name) for name in names}))


def temporary(name: str) -> bool:
    """Decide whether a file's name is one that writers use until it is complete."""
    return name.startswith(".") or name.endswith((".partial", ".old", ".tmp"))
