"""Runs commands of ``fastblt`` by the thousand: children of a warm process, with faults at chosen places."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
#: Names of the shim's calls that change what is on disk.
WRITING = ("open", "write", "fsync", "rename", "close", "mkdir", "remove", "link", "size", "copy", "mode")
#: Names of those that only look.
READING = ("open-read", "read", "map", "list", "stat")


@dataclass(frozen=True)
class Rule:
    """Specifies which calls to the file system meet what, see ``fault_shim.c``."""

    folder: Path
    """Calls below it are counted."""
    calls: Sequence[str]
    action: str
    """``count``, ``error``, ``short``, ``before`` or ``after``."""
    value: int = 0
    """An errno, or a signal."""
    nth: int = 0
    sticky: bool = False
    chance: float = 0.0
    seed: int = 1

    def text(self, log: Path) -> str:
        """Return the rule as the shim reads it."""
        return (
            f"folder={self.folder};calls={','.join(self.calls)};action={self.action};value={self.value};"
            f"nth={self.nth};sticky={int(self.sticky)};chance={round(1e6 * self.chance)};seed={self.seed};log={log}"
        )


@dataclass(frozen=True)
class Ended:
    """Holds how a command ended."""

    status: int
    """Its exit status; negative: the signal that ended it."""
    late: bool
    """Whether it ran past the limit and was killed."""
    seconds: float
    processor_seconds: float
    stdout: str
    stderr: str
    met: tuple[str, ...]
    """The calls that met the rule's action: ``number call path``."""


class WarmCommands:
    """Is the warm process, seen from outside."""

    def __init__(self, shim: Path) -> None:
        environment = dict(os.environ) | {
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a campaign ignores it
        )
        self._answer()

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        notes: Path,
        *,
        rule: Rule | None = None,
        signal_number: int = 0,
        after: float = 0.0,
        limit: float = 60.0,
        environment: dict[str, str] | None = None,
        toy: bool = False,
    ) -> Ended:
        """Run one command and return how it ended.

        Args:
            arguments: of ``fastblt``.
            folder: to run it in.
            notes: folder for its output and the shim's log.
            rule: of faults.
            signal_number: of a signal to send; 0: none.
            after: seconds until it is sent.
            limit: seconds after which the command is killed.
            environment: variables to add.
            toy: put the toy corpus in place of the real one.
        """
        notes.mkdir(parents=True, exist_ok=True)
        log = notes / "met"
        for name in ("met", "stdout", "stderr"):
            (notes / name).unlink(missing_ok=True)
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": environment or {},
            "toy": toy,
            "stdout": str(notes / "stdout"),
            "stderr": str(notes / "stderr"),
            "rule": rule.text(log) if rule else "",
            "signal": signal_number,
            "after": after,
            "limit": limit,
        }
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._answer()
        return Ended(
            int(answer["status"]),
            bool(answer["late"]),
            answer["seconds"],
            answer["processor_seconds"],
            _text(notes / "stdout"),
            _text(notes / "stderr"),
            tuple(_text(log).splitlines()),
        )

    def close(self) -> None:
        """End the warm process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        stream: IO[str] | None = self._process.stdout
        line = stream.readline() if stream else ""
        if not line:
            raise RuntimeError(f"warm process: ended with {self._process.wait()}, expected an answer")
        answer: dict[str, float] = json.loads(line)
        return answer


def build_shim(folder: Path) -> Path:
    """Compile ``fault_shim.c`` into a folder, unless it is there; return the library."""
    library = folder / "fault_shim.so"
    if not library.exists():
        partial = folder / f"fault_shim.{os.getpid()}.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(partial), str(HERE / "fault_shim.c"), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.rename(library)
    return library


@cache
def warm_commands(shim: Path) -> WarmCommands:
    """Return the warm process of this process, started when it is first asked for."""
    return WarmCommands(shim)


def _text(path: Path) -> str:
    """Return the text of a file; a process that was killed at once has none."""
    return path.read_text(errors="replace") if path.exists() else ""
