"""Makes tries in a forked process, so that the campaign survives a crash or a hang and knows what caused it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import re
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from campaign.part import Counts, Part, Place, Recipe, failed

#: Seconds that a worker makes tries of one part before it asks again.
TURN_SECONDS = 2.0
#: Numbers of tries that are reserved for one turn.
TURN_TRIES = 256
#: Resident bytes from which a worker is replaced: what libraries keep of hundreds of models adds up.
RESIDENT_BYTES = 1_500 * 2**20


@dataclass(frozen=True)
class Turn:
    """Asks a worker for tries."""

    part: str
    first: int
    """Number of the first try."""
    count: int
    seconds: float


@dataclass(frozen=True)
class Started:
    """Reports that a try begins."""

    number: int
    processor_seconds: float
    """Used by the worker so far."""


@dataclass(frozen=True)
class Announced:
    """Reports what the try is about to do."""

    recipe: Recipe


@dataclass(frozen=True)
class Done:
    """Reports what came out of a try."""

    number: int
    counts: Counts


@dataclass(frozen=True)
class Free:
    """Reports that a turn is over."""

    resident_bytes: int


class Worker:
    """Is one process that makes tries, seen from the campaign."""

    def __init__(self, parts: dict[str, Part], fixtures: Path, folder: Path, seed: int) -> None:
        context = get_context("fork")
        self.connection, theirs = context.Pipe()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self._process = context.Process(target=_serve, args=(theirs, parts, fixtures, folder, seed), daemon=False)
        self._process.start()
        theirs.close()
        self.part: Part | None = None
        """What it is busy with."""
        self.started: Started | None = None
        """The try that it is busy with."""
        self.last: Started | None = None
        """The newest try that it has begun."""
        self.started_at = 0.0
        self.turn_at = 0.0
        self.recipe: Recipe = {}
        self.resident_bytes = 0

    def ask(self, part: Part, turn: Turn) -> None:
        """Let the worker make tries."""
        self.part, self.started, self.turn_at = part, None, time.monotonic()
        self.connection.send(turn)

    def overdue(self) -> str | None:
        """Return why the try that is being made counts as a hang; None: it does not, yet."""
        if self.part is None or self.started is None:
            return None
        limits = self.part.limits
        wall = time.monotonic() - self.started_at
        if wall > limits.wall_seconds:
            return f"more than {limits.wall_seconds:g} s"
        if wall > limits.processor_seconds / (os.cpu_count() or 1):
            used = processor_seconds(self._process.pid or 0) - self.started.processor_seconds
            if used > limits.processor_seconds:
                return f"more than {limits.processor_seconds:g} s of processor time"
        return None

    def end(self) -> str:
        """End the process and its children; return what it had written to its log (where it was, if it hung)."""
        if self._process.is_alive() and self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                if self.started is not None:
                    os.kill(self._process.pid, signal.SIGUSR1)
                    self._process.join(0.3)
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        self.connection.close()
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def how_it_ended(self) -> str:
        """Return how a process that is gone ended."""
        self._process.join()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far, all of its threads; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rng_of(seed: int, part: str, number: int) -> random.Random:
    """Return the generator that decides what a try does."""
    return random.Random(f"{seed}:{part}:{number}")


def make_try(
    part: Part, seed: int, number: int, seconds: float, place: Place, attempt: Callable[..., Counts] | None = None
) -> Counts:
    """Make one try, and count an exception as a failure."""
    try:
        return (attempt or part.attempt)(rng_of(seed, part.name, number), seconds, place)
    except Exception as error:
        return unexpected(error)


def unexpected(error: BaseException) -> Counts:
    """Return the counts of a try that ended in an exception which nobody should see."""
    text = "".join(traceback.format_exception(error))
    message = re.sub(r"\d+", "0", re.sub(r"'/[^']*'", "a path", str(error)))
    return failed("traceback", f"{type(error).__name__} in {origin(error)}: {message[-60:]}", text[-6000:])


def origin(error: BaseException) -> str:
    """Return the innermost function of the package in an exception's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("/site-packages/", "/lib/python", "/tests/campaign/", "<frozen ")
    ours = [frame for frame in frames if not any(path in frame.filename for path in others)] or frames
    return f"{'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].name}" if ours else "nowhere"


@dataclass
class _Server:
    connection: Connection
    parts: dict[str, Part]
    fixtures: Path
    folder: Path
    seed: int

    def take(self, turn: Turn) -> None:
        part = self.parts[turn.part]
        limit_memory(part)
        end = time.monotonic() + (turn.seconds if part.at_once else min(turn.seconds, TURN_SECONDS))
        for number in range(turn.first, turn.first + turn.count):
            scratch = self.folder / f"{part.name}-{number}"
            scratch.mkdir(parents=True)
            self.connection.send(Started(number, time.process_time()))
            place = Place(self.fixtures, scratch, lambda recipe: self.connection.send(Announced(recipe)))
            os.chdir(scratch)
            counts = make_try(part, self.seed, number, end - time.monotonic(), place)
            os.chdir(self.folder)
            if not counts.failures:
                shutil.rmtree(scratch, ignore_errors=True)
            self.connection.send(Done(number, counts))
            if part.at_once or time.monotonic() >= end:
                break


def limit_memory(part: Part) -> None:
    """Bound the address space of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + part.limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _serve(connection: Connection, parts: dict[str, Part], fixtures: Path, folder: Path, seed: int) -> None:
    os.setsid()  # its children end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(folder / "log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDWR)
    for stream, target in ((0, null), (1, null), (2, log)):
        os.dup2(target, stream)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log, all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    server = _Server(connection, parts, fixtures, folder, seed)
    try:
        while True:
            server.take(connection.recv())
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            connection.send(Free(resident))
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
