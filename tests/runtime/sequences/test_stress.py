"""Eight threads share four places: texts wait, streams are dropped and closed, calls fail; no byte is wrong."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.turns import BusyError

THREADS = 8
ROUNDS = 10
BYTES = 12
METHODS = ("ar", "s:1", "s:5", "d:4@0.7", "dv:4@one", "dv:4@0.4+partial", "auto")
PROMPTS = (b"", b"Once upon a time", b"Once upon a time there was a fox", b"\xff\x00 bytes")

Job = tuple[bytes, str]


class _StopError(Exception):
    """Raised by a consumer."""


@pytest.fixture(scope="module")
def backend(tiny_bundle: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend.load(tiny_bundle, 120, 1, sequences=4)


@pytest.fixture(scope="module")
def alone(backend: OnnxRuntimeBackend) -> dict[Job, bytes]:
    runtime = BltRuntime(backend, reuse_prompts=False)
    jobs = [(prompt, method) for prompt in PROMPTS for method in METHODS]
    return {job: runtime.generate(job[0], BYTES, method=job[1], stop_at_eos=False).data for job in jobs}


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class _User:
    """Does one thing after the other, and compares whatever comes back."""

    def __init__(self, runtime: BltRuntime, alone: dict[Job, bytes], number: int) -> None:
        self.runtime, self.alone, self.chance = runtime, alone, random.Random(number)
        self.sequence, self.known = runtime.sequence(), b""
        self.done: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        works = (self.whole, self.stream, self.fail, self.grow, self.score)
        for _ in range(ROUNDS):
            job, work = self.chance.choice(list(self.alone)), self.chance.choice(works)
            try:
                work(job)
                self.done[work.__name__] += 1
            except BusyError as error:
                assert "taken by streams that are open" in str(error)  # noqa: PT017
                self.done["busy"] += 1
        self.sequence.close()
        return self.done

    def whole(self, job: Job) -> None:
        assert self.runtime.generate(job[0], BYTES, method=job[1], stop_at_eos=False).data == self.alone[job]

    def stream(self, job: Job) -> None:
        stream = self.runtime.stream(job[0], BYTES, method=job[1], stop_at_eos=False)
        found, most = b"", self.chance.randrange(2 * BYTES)
        for chunk in stream:
            found += chunk.data
            if len(found) >= most:
                break
        assert found == self.alone[job][: len(found)]
        if self.chance.random() < 0.5:
            closing = threading.Thread(target=stream.close)
            closing.start()
            closing.join()

    def fail(self, job: Job) -> None:
        def stop(_: object) -> None:
            raise _StopError

        with pytest.raises(_StopError):
            self.runtime.generate(job[0], BYTES, method=job[1], stop_at_eos=False, on_chunk=stop)

    def grow(self, job: Job) -> None:
        """Let a sequence grow by a prompt that it continues as alone, as long as it is the first."""
        if len(self.known) > 60:
            self.sequence.close()
            self.sequence, self.known = self.runtime.sequence(), b""
        before = self.known
        found = self.sequence.generate(job[0], BYTES, method=job[1], stop_at_eos=False).data
        self.known += job[0] + found
        assert self.sequence.data == self.known
        if not before:
            assert found == self.alone[job]
        elif job[1][:2] != "d:":
            assert self.runtime.generate(before + job[0], BYTES, method="ar", stop_at_eos=False).data == found

    def score(self, job: Job) -> None:
        assert len(self.runtime.score(job[0], self.alone[job]).logprobs) == BYTES


def test_nothing_is_mixed_up(backend: OnnxRuntimeBackend, alone: dict[Job, bytes]) -> None:
    runtime = BltRuntime(backend)
    users = [_User(runtime, alone, number) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        done = sum((each.result(60) for each in [pool.submit(user.run) for user in users]), Counter[str]())
    assert {"whole", "stream", "fail", "grow", "score"} <= done.keys()
    stats = runtime.pool_stats
    assert (stats.in_use, stats.idle, stats.waiting) == (0, 4, 0)
    assert stats.reused > 5
    assert stats.saved > 0
