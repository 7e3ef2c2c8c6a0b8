"""Threads hammer one sequence whose graphs are slow and let others run: every byte is that of a single thread."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.turns import BusyError

THREADS = 6
ROUNDS = 14
BYTES = 16
PROMPTS = (b"", b"Once upon a time", b"The quick brown fox jumps over", b"\xff\x00 bytes")
METHODS = ("ar", "s:4", "auto", "dv:4@0.4")
CONTINUATION = b" and more of it"

Job = tuple[bytes, str]


@pytest.fixture
def backend(open_backend: Callable[[str, str, int], Backend]) -> Iterator[OnnxRuntimeBackend]:
    """The real backend; around every graph other threads get their turn."""
    found = open_backend("onnxruntime", "embedding", 80)
    assert isinstance(found, OnnxRuntimeBackend)
    found.sequences = 1
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield found
    sys.setswitchinterval(interval)


class Slowed:
    """Passes on to a session of ONNX Runtime, and sleeps at random before and after each run."""

    def __init__(self, session: Any, chance: random.Random) -> None:
        self._session, self._chance = session, chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, io: Any) -> None:
        for work in (lambda: self._session.run_with_iobinding(io), lambda: None):
            if self._chance.random() < 0.3:
                time.sleep(self._chance.random() * 4e-4)  # outside of the interpreter's lock
            work()


def slow_down(backend: OnnxRuntimeBackend) -> None:
    """Sleep at random before and after each graph."""
    chance = random.Random(3)
    for graph in backend.graphs.values():
        graph.session = Slowed(graph.session, chance)


class Hammer:
    """Uses a runtime from one of several threads, and compares whatever comes back with what is expected."""

    def __init__(self, runtime: BltRuntime, texts: dict[Job, bytes], scores: dict[bytes, list[float]]) -> None:
        self.runtime, self.texts, self.scores = runtime, texts, scores
        self.streams = self.begun = 0
        """Streams that may be open, and that were ever asked for."""
        self.count = threading.Lock()
        self.done: Counter[str] = Counter()

    def generate(self, job: Job) -> None:
        assert self.runtime.generate(job[0], BYTES, method=job[1], stop_at_eos=False).data == self.texts[job]

    def score(self, job: Job) -> None:
        assert self.runtime.score(job[0], CONTINUATION).logprobs.tolist() == self.scores[job[0]]

    def read(self, job: Job, most: int, leave: Callable[[ByteStream], object]) -> None:
        """Read chunks of a stream up to ``most`` bytes, then leave it; nothing may come between two of its chunks."""
        with self.count:
            self.streams += 1
            self.begun += 1
        stream = None
        try:
            stream = self.runtime.stream(job[0], BYTES, method=job[1], stop_at_eos=False)
            found = b""
            while len(found) < most:
                found += self.advance(stream)
            assert found == self.texts[job][: len(found)]
            leave(stream)
        finally:
            del stream
            with self.count:
                self.streams -= 1

    def advance(self, stream: ByteStream) -> bytes:
        try:
            return next(stream).data
        except BusyError:
            pytest.fail("a stream that is open was disturbed")

    def close_elsewhere(self, stream: ByteStream) -> None:
        """Close a stream while this thread asks for its next chunk: either comes first."""
        closing = threading.Thread(target=stream.close)
        closing.start()
        try:
            next(stream)
        except ValueError as error:
            assert "closed before its end" in str(error)  # noqa: PT017
        except StopIteration:
            pass
        closing.join()
        assert not stream.open

    def run(self, number: int) -> None:
        chance = random.Random(number)
        jobs = list(self.texts)
        for _ in range(ROUNDS):
            job, most = chance.choice(jobs), chance.randrange(BYTES)
            kind, work = chance.choice(
                [
                    ("generate", lambda job=job: self.generate(job)),
                    ("score", lambda job=job: self.score(job)),
                    ("stream", lambda job=job: self.read(job, BYTES, lambda stream: None)),
                    ("drop", lambda job=job, most=most: self.read(job, most, lambda stream: None)),
                    ("close", lambda job=job, most=most: self.read(job, most, ByteStream.close)),
                    ("close elsewhere", lambda job=job, most=most: self.read(job, most, self.close_elsewhere)),
                ]
            )
            own = kind not in ("generate", "score")
            while not self.attempt(work, own):
                time.sleep(chance.random() * 2e-3)
            self.done[kind] += 1

    def attempt(self, work: Callable[[], None], own: bool) -> bool:
        """Work unless the runtime is busy, which it may only be while another thread has a stream."""
        with self.count:
            streams, begun = self.streams, self.begun
        try:
            work()
        except BusyError:
            with self.count:
                assert streams or self.begun > begun + own, "refused without a stream"
            return False
        return True


def test_threads_that_share_a_runtime_get_the_bytes_of_a_single_thread(backend: OnnxRuntimeBackend) -> None:
    alone = BltRuntime(backend)
    texts = {
        (prompt, method): alone.generate(prompt, BYTES, method=method, stop_at_eos=False).data
        for prompt in PROMPTS
        for method in METHODS
    }
    scores = {prompt: alone.score(prompt, CONTINUATION).logprobs.tolist() for prompt in PROMPTS}
    del alone
    slow_down(backend)
    hammer = Hammer(BltRuntime(backend), texts, scores)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(hammer.run, number) for number in range(THREADS)]:
            done.result()
    assert hammer.done.total() == THREADS * ROUNDS
    assert len(hammer.done) == 6
    hammer.generate((PROMPTS[1], "ar"))
