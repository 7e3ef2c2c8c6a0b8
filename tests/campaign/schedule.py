"""Divides time between parts, keeps workers busy, and notices those that crash or hang."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from campaign.part import HOSTILE_GRAPH, Counts, Part, failed
from campaign.report import FoundFailure, PartReport
from campaign.worker import RESIDENT_BYTES, TURN_TRIES, Announced, Done, Free, Started, Turn, Worker

#: Failing inputs of each part whose files are kept; of the others only the recipe is.
KEPT_INPUTS = 50
_POLL_SECONDS = 0.2


@dataclass
class _Share:
    """Is the part's state during a campaign."""

    part: Part
    report: PartReport
    seconds: float
    """To spend in all, over all workers."""
    next_number: int = 0
    begun: bool = False


@dataclass
class Campaign:
    """Runs parts for a time."""

    parts: list[Part]
    fixtures: Path
    folder: Path
    """Of reports, failures and what tries write."""
    seed: int
    jobs: int
    say: Callable[[str], None]
    shares: dict[str, _Share] = field(init=False)
    workers: list[Worker] = field(init=False, default_factory=list)
    _made: int = field(init=False, default=0)

    def run(self, seconds: float) -> list[PartReport]:
        """Spend ``seconds`` of wall-clock time and return what came out, in the order of the parts."""
        total = sum(part.weight for part in self.parts)
        self.shares = {
            part.name: _Share(part, PartReport(part.name), seconds * self.jobs * part.weight / total)
            for part in self.parts
        }
        started = said = time.monotonic()
        try:
            self.workers = [self._worker() for _ in range(self.jobs)]
            while True:
                now = time.monotonic()
                for worker in [each for each in self.workers if each.part is None]:
                    self._ask(worker, started + seconds - now)
                if all(worker.part is None for worker in self.workers):
                    break
                self._listen()
                if now - said >= 60:
                    said = now
                    self.say(f"after {(now - started) / 60:.0f} min")
                    for share in self.shares.values():
                        self.say(f"  {share.report.line()}")
        finally:
            for worker in self.workers:
                worker.end()
            shutil.rmtree(self.folder / "tries", ignore_errors=True)
        return [share.report for share in self.shares.values()]

    def _worker(self) -> Worker:
        self._made += 1
        parts = {part.name: part for part in self.parts}
        return Worker(parts, self.fixtures, self.folder / "tries" / str(self._made), self.seed)

    def _ask(self, worker: Worker, left: float) -> None:
        """Give a free worker the part that has spent least of its time, if there is time left."""
        if left <= 0:
            return
        waiting = [
            share
            for share in self.shares.values()
            if not (share.part.at_once and share.begun) and share.report.seconds < share.seconds
        ]
        if not waiting:
            return
        share = min(waiting, key=lambda each: (not each.part.at_once, each.report.seconds / each.seconds))
        share.begun = True
        seconds = min(left, share.seconds)
        worker.ask(share.part, Turn(share.part.name, share.next_number, TURN_TRIES, seconds))
        share.next_number += TURN_TRIES

    def _listen(self) -> None:
        """Take what workers report, and replace those that are gone or take too long."""
        ready = wait([worker.connection for worker in self.workers if worker.part is not None], _POLL_SECONDS)
        for index, worker in enumerate(self.workers):
            if worker.connection in ready and not self._hear(worker):
                self._replace(index, failed("crash", f"ended by {worker.how_it_ended()}"))
                continue
            reason = worker.overdue()
            if reason is not None:
                self._replace(index, failed("hang", reason))
            elif worker.resident_bytes > RESIDENT_BYTES and worker.part is None:
                worker.end()
                self.workers[index] = self._worker()

    def _hear(self, worker: Worker) -> bool:
        """Take everything that a worker has reported; return whether it is still there."""
        try:
            while worker.connection.poll():
                self._take(worker, worker.connection.recv())
        except (EOFError, ConnectionResetError):
            return False
        return True

    def _take(self, worker: Worker, message: object) -> None:
        assert worker.part is not None
        report = self.shares[worker.part.name].report
        match message:
            case Started():
                worker.started = worker.last = message
                worker.started_at, worker.recipe = time.monotonic(), {}
            case Announced():
                worker.recipe = message.recipe
            case Done():
                self._count(worker, message.counts)
                worker.started = None
            case Free():
                report.seconds += time.monotonic() - worker.turn_at
                worker.part = None
                worker.resident_bytes = message.resident_bytes

    def _count(self, worker: Worker, counts: Counts) -> None:
        assert worker.part is not None
        assert worker.last is not None
        report = self.shares[worker.part.name].report
        report.counts.add(counts)
        replay = f"{worker.part.name}:{self.seed}:{worker.last.number}"
        for failure in counts.failures:
            report.found.append(FoundFailure(replay, failure, worker.recipe))
        scratch = worker.folder / f"{worker.part.name}-{worker.last.number}"
        if counts.failures and len(report.found) <= KEPT_INPUTS and scratch.exists():
            kept = self.folder / "failures" / scratch.name.replace("/", "-")
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            scratch.rename(kept)

    def _replace(self, index: int, counts: Counts) -> None:
        """Count the try in which a worker crashed or hung, and start another worker."""
        worker = self.workers[index]
        words = worker.end()
        counts.failures = [type(each)(each.kind, f"{each.what}{where(words)}", words) for each in counts.failures]
        if worker.recipe.get(HOSTILE_GRAPH) and inside_onnxruntime(words):
            counts = Counts(1, refused=1, figures={"ended inside ONNX Runtime by a hostile graph": 1})
        assert worker.part is not None
        report = self.shares[worker.part.name].report
        report.seconds += time.monotonic() - worker.turn_at
        if worker.last is None:
            raise RuntimeError(f"the campaign itself failed in part {worker.part.name}: {words}")
        self._count(worker, counts)
        self.workers[index] = self._worker()


def inside_onnxruntime(words: str) -> bool:
    """Return whether ONNX Runtime was at work when a process ended, from what faulthandler wrote."""
    frames = [line for line in words.splitlines() if line.lstrip().startswith("File ")]
    return bool(frames) and "/onnxruntime/" in frames[0]


def where(words: str) -> str:
    """Return the innermost frame of the package in what faulthandler wrote; empty if there is none."""
    frames = [line.strip() for line in words.splitlines() if line.lstrip().startswith("File ")]
    ours = [line for line in frames if "/campaign/" not in line and "/lib/python" not in line]
    if not ours:
        return ""
    path, _, function = ours[0].removeprefix('File "').partition('"')
    return f" in {'/'.join(Path(path).parts[-2:])}:{function.rpartition(' ')[2]}"
