"""Uses one and several runtimes from many threads at once: every byte is that of a single thread, and nothing waits."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from campaign.part import Counts, Limits, Place, failed
from campaign.random_models import MODELS, model_names, prepare_models

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.turns import BusyError

_MAX_BYTES = 256
_NEW_BYTES = 24
_WORKS = 12
"""Of each thread."""
_CONTINUATION = b" and more of it"
_PROMPTS = (b"", b"Once upon a time", b"\xff\x00 bytes", b"The quick brown fox jumps over the lazy dog. " * 3)
#: Largest share of its time that the interpreter leaves to a thread before another may run, in seconds.
_SWITCH_SECONDS = 1e-6

Job = tuple[bytes, str]


class Threads:
    """Lets threads generate, stream, score, close and drop, on runtimes that they share."""

    name = "threads"
    summary = "threads that share runtimes and generate, stream, score, close and drop: the bytes of a single thread"
    weight = 1.0
    limits = Limits(processor_seconds=120.0, wall_seconds=400.0, memory_bytes=16 * 2**30)
    at_once = False

    def prepare(self, fixtures: Path) -> None:
        """Make a bundle of every kind."""
        prepare_models(fixtures)

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Load one to three runtimes, keep what each writes alone, and let threads compare."""
        names = rng.sample(model_names(place.fixtures), rng.randint(1, 3))
        count = rng.randint(2, 8)
        place.announce({"models": names, "threads": count})
        shared = [_Shared.load(place.fixtures / MODELS / name / "bundle", rng) for name in names]
        crews = [_Crew(shared, random.Random(rng.random())) for _ in range(count)]
        threads = [threading.Thread(target=crew.run) for crew in crews]
        with _switching():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        total = Counts()
        for crew in crews:
            total.add(crew.counts)
        for each in shared:  # and afterwards it can be used as ever
            job = rng.choice(list(each.texts))
            if each.runtime.generate(job[0], _NEW_BYTES, method=job[1], stop_at_eos=False).data != each.texts[job]:
                total.add(failed("wrong bytes", f"threads: {job[1]} writes other bytes afterwards"))
        return total


@dataclass
class _Shared:
    """Is a runtime, and what it wrote when one thread had it."""

    runtime: BltRuntime
    texts: dict[Job, bytes]
    scores: dict[bytes, list[float]]
    streams: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, bundle: Path, rng: random.Random) -> _Shared:
        runtime = BltRuntime.from_pretrained(bundle, provider="cpu", max_bytes=_MAX_BYTES, threads=1)
        methods = ["ar", "s:4", "auto", *(["dv:4@0.4"] if runtime.config.block_size else [])]
        prompts = rng.sample(_PROMPTS, 2)
        texts = {
            (prompt, method): runtime.generate(prompt, _NEW_BYTES, method=method, stop_at_eos=False).data
            for prompt in prompts
            for method in methods
        }
        scores = {prompt: runtime.score(prompt, _CONTINUATION).logprobs.tolist() for prompt in prompts}
        return cls(runtime, texts, scores)

    def count(self, number: int) -> None:
        """Count streams that may be open, and those that were ever asked for."""
        with self.lock:
            self.streams["open"] += number
            self.streams["begun"] += max(0, number)

    def seen(self) -> tuple[int, int]:
        """Return both."""
        with self.lock:
            return self.streams["open"], self.streams["begun"]


class _Crew:
    """Is one thread's work."""

    def __init__(self, shared: list[_Shared], rng: random.Random) -> None:
        self.shared, self.rng = shared, rng
        self.counts = Counts()

    def run(self) -> None:
        for _ in range(_WORKS):
            shared = self.rng.choice(self.shared)
            job = self.rng.choice(list(shared.texts))
            work, own = self.rng.choice(
                [(self.generate, False), (self.score, False), (self.stream, True), (self.drop, True)]
            )
            try:
                while not self.unless_busy(partial(work, shared, job), shared, own):
                    time.sleep(self.rng.random() * 2e-3)
            except Exception as error:
                self.counts.add(failed("other", f"threads: {type(error).__name__}: {error}"))

    def unless_busy(self, work: Callable[[], Counts], shared: _Shared, own: bool) -> bool:
        """Work unless the runtime is busy, which it may be only while another thread has a stream."""
        streams, begun = shared.seen()
        try:
            self.counts.add(work())
        except BusyError as error:
            if not streams and shared.seen()[1] <= begun + own:
                self.counts.add(failed("other", f"threads: refused though there is no stream: {error}"))
            self.counts.figures["waits for streams"] = self.counts.figures.get("waits for streams", 0) + 1
            return False
        return True

    def generate(self, shared: _Shared, job: Job) -> Counts:
        found = shared.runtime.generate(job[0], _NEW_BYTES, method=job[1], stop_at_eos=False).data
        return _compare(job[1], found, shared.texts[job])

    def score(self, shared: _Shared, job: Job) -> Counts:
        found = shared.runtime.score(job[0], _CONTINUATION).logprobs.tolist()
        if found != shared.scores[job[0]]:
            return failed("wrong bytes", "threads: score: other log-probabilities")
        return Counts(tries=1, ok=1)

    def stream(self, shared: _Shared, job: Job) -> Counts:
        """Read a stream to its end."""
        return self.read(shared, job, _NEW_BYTES)

    def drop(self, shared: _Shared, job: Job) -> Counts:
        """Leave a stream half-way: close it, or only forget it."""
        return self.read(shared, job, self.rng.randrange(_NEW_BYTES))

    def read(self, shared: _Shared, job: Job, most: int) -> Counts:
        shared.count(1)
        stream = None
        try:
            stream = shared.runtime.stream(job[0], _NEW_BYTES, method=job[1], stop_at_eos=False)
            found = b""
            try:
                while len(found) < most and (chunk := next(stream, None)) is not None:
                    found += chunk.data
            except BusyError as error:
                return failed("other", f"threads: an open stream was disturbed: {error}")
            if self.rng.random() < 0.5:
                stream.close()
            return _compare(job[1], found, shared.texts[job][: len(found)])
        finally:
            del stream
            shared.count(-1)


def _compare(method: str, found: bytes, expected: bytes) -> Counts:
    if found != expected:
        return failed("wrong bytes", f"threads: {method}: other bytes", f"{expected!r}\n{found!r}")
    return Counts(tries=1, ok=1, figures={"bytes compared": len(found)})


@contextmanager
def _switching() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
