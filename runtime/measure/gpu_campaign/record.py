"""Keeps what a campaign has found so far in one JSON file, which is replaced as a whole after every step."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastblt import __version__
from fastblt.runtime.measure.report import write_json

FILE = "campaign.json"
#: States of a step. ``done`` is final; the others are tried again when the campaign is continued.
DONE, FAILED, SKIPPED, PENDING = "done", "failed", "skipped", "pending"
#: What must be the same when a campaign is continued: otherwise figures of two machines would be in one report.
_IDENTITY = ("gpu", "driver", "revision", "checkpoint", "replay_checkpoint")


class CampaignError(ValueError):
    """Reports a campaign that cannot be started or continued, or steps that failed."""


@dataclass(frozen=True)
class Found:
    """Holds what a step found."""

    state: str
    """`DONE`, `FAILED`, `SKIPPED` or `PENDING`."""
    seconds: float = 0.0
    error: str = ""
    """Why it failed, was skipped or has not been reached, one line; empty: it is done."""
    command: tuple[str, ...] = ()
    result: Any = None
    """The JSON that it wrote; a step that failed may have written one."""


class Record:
    """Holds a campaign's machine and the findings of its steps by name.

    Args:
        folder: of the campaign.
        machine: from `describe_machine`.
        previous: content of the file, if the campaign is continued.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> None:
        self.folder, self.machine = folder, dict(machine)
        entries: dict[str, Any] = dict(previous["steps"]) if previous else {}
        self.steps = {name: Found(**{**entry, "command": tuple(entry["command"])}) for name, entry in entries.items()}

    @property
    def stub(self) -> bool:
        """Return whether the GPU is a stub, whose numbers mean nothing."""
        return bool(self.machine["stub"])

    def put(self, name: str, found: Found) -> None:
        """Keep what a step found, and write the file.

        Raises:
            OSError: it cannot be written.
        """
        self.steps[name] = found
        self.write()

    def write(self) -> None:
        """Write the file, atomically.

        Raises:
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        steps = {name: asdict(found) for name, found in self.steps.items()}
        write_json(self.folder / FILE, {**self.machine, "steps": steps})


def open_record(folder: Path, machine: Mapping[str, Any]) -> Record:
    """Return the record of a new campaign, or of one that is continued; nothing is written.

    Raises:
        CampaignError: the folder has the record of another machine, version or checkpoint, or a damaged one.
    """
    path = folder / FILE
    if not path.exists():
        return Record(folder, machine)
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
        known = {name: previous[name] for name in _IDENTITY}
        record = Record(folder, machine, previous)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CampaignError(
            f"{path}: found no record of a campaign ({error}), expected one, or another folder"
        ) from None
    for name, value in known.items():
        if value != machine[name]:
            raise CampaignError(
                f"{path}: {name}: found a campaign with {value!r}, expected {machine[name]!r}; choose another folder"
            )
    return record


def describe_machine(facts: Mapping[str, Any], checkpoint: str | None, replay: str) -> dict[str, Any]:
    """Return what figures depend on, in plain JSON types.

    Args:
        facts: those of `fastblt doctor`, with at least one GPU.
        checkpoint: that is measured.
        replay: that is replayed.
    """
    gpu = facts["gpus"][0]
    revision, changed = _revision()
    return {
        "stub": "stub" in gpu["name"].lower(),
        "gpu": gpu["name"],
        "sm": gpu["sm"],
        "memory_bytes": gpu["memory_bytes"],
        "driver": facts["driver_version"] or f"for CUDA {facts['driver_cuda']}",
        "versions": _versions(facts),
        "fastblt": __version__,
        "revision": revision,
        "uncommitted_changes": changed,
        "checkpoint": checkpoint,
        "replay_checkpoint": replay,
    }


def _versions(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the libraries that run models, by name; what is not installed is left out."""
    found = {
        "CUDA of the driver": facts["driver_cuda"],
        "cuda-bindings": facts["cuda_bindings"],
        facts["onnxruntime_package"] or "onnxruntime": facts["onnxruntime"],
        "torch": facts["torch"],
        **{library["target"]: library["version"] for library in facts["libraries"]},
    }
    return {name: version for name, version in found.items() if version is not None}


def _revision() -> tuple[str | None, bool | None]:
    """Return the commit of the sources and whether they differ from it; (None, None) where this is no clone."""
    source = Path(__file__).resolve()
    known = ["ls-files", "--error-unmatch", source.name]  # or this is an installed package inside another clone
    answers = []
    for command in (known, ["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(source.parent), *command], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None, None
        if done.returncode:
            return None, None
        answers.append(done.stdout.strip())
    return answers[1], bool(answers[2])
