"""Texts that begin alike come and go in a batch, in places that keep what they have read: each is the text alone.

What a batch has computed has to be in a place's own caches when its text ends: the next one may go on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.arrivals import TEXT
from properties import NIGHTLY_FACTOR, THOROUGH

from fastblt.models.tokens import encode
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.sequences.sequence import Sequence

METHODS = ("ar", "s:4", "dv:4@one", "d:4@0.7")
PLAIN = ("ar", "s:4", "s:7+partial")
#: Fixture of the checkpoint, methods.
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "BLT-D": ("tiny_checkpoint", METHODS),
    "BLT": ("tiny_encoder_checkpoint", PLAIN),
    "documents": ("documents_checkpoint", PLAIN),
}
PLACES = 4
TEXTS = 24
MAX_BYTES = 700
SEEDS = range(2 * (NIGHTLY_FACTOR if THOROUGH else 1))


@dataclass(eq=False)
class Growing:
    """Holds a text, and what has to come out of it."""

    stream: ByteStream
    ids: Ids
    """What it continues, int64 [n], BOS first."""
    new_bytes: int
    options: dict[str, Any]
    steps: int
    """After which it is closed."""
    data: bytes = field(default=b"")
    whole: bool = True


class Coming:
    """Begins texts at random: of nobody, or those that continue from call to call."""

    def __init__(self, runtime: BltRuntime, methods: tuple[str, ...], seed: int) -> None:
        self._runtime = runtime
        self._methods = methods
        self._random = np.random.default_rng(seed)
        self._conversations = [runtime.sequence() for _ in range(3)]
        self._speaking: dict[int, ByteStream] = {}

    def begin(self) -> Growing:
        """Begin a text; its prompt begins like those of others."""
        random = self._random
        start, length = int(random.choice([0, 0, 50])), int(random.choice([1, 20, 90, 150, 290]))
        prompt = TEXT[start : start + length] + random.bytes(int(random.integers(0, 4)))
        options = {
            "method": str(random.choice(self._methods)),
            "temperature": float(random.choice([0.0, 0.9])),
            "seed": int(random.integers(9)),
            "stop_at_eos": False,
        }
        new_bytes = int(random.integers(1, 30))
        maker: BltRuntime | Sequence = self._runtime
        before: Ids = encode(b"")
        who = int(random.integers(6))
        if who < len(self._conversations) and not (who in self._speaking and self._speaking[who].open):
            maker = self._conversations[who]
            if len(maker.data) > 200:
                maker.close()
                maker = self._conversations[who] = self._runtime.sequence()
            before = maker.tokens
        stream = maker.stream(prompt, new_bytes, **options)
        if isinstance(maker, Sequence):
            self._speaking[who] = stream
        ids = np.concatenate([before, encode(prompt, bos=False)])
        return Growing(stream, ids, new_bytes, options, int(random.choice([2, 1000, 1000])))


def grow(runtime: BltRuntime, methods: tuple[str, ...], seed: int) -> list[Growing]:
    """Return texts that have grown together, no more at a time than there are places."""
    coming, random = Coming(runtime, methods, seed), np.random.default_rng(seed)
    scheduler = RoundScheduler(runtime.backend, PLACES)
    assert scheduler.shares_calls
    running: deque[Growing] = deque()
    ended: list[Growing] = []
    while len(ended) < TEXTS:
        while len(running) < PLACES and len(running) + len(ended) < TEXTS and random.random() < 0.6:
            running.append(coming.begin())
        steps = scheduler.step([each.stream for each in running])
        for each, step in zip(list(running), steps, strict=True):
            assert step.error is None
            each.data += step.chunk.data if step.chunk else b""
            each.steps -= 1
            if each.stream.open and each.steps == 0:
                each.stream.close()
                each.whole = False
            if not each.stream.open:
                running.remove(each)
                ended.append(each)
    scheduler.close()
    assert runtime.sequences_in_use == 0
    return ended


@pytest.mark.parametrize("form", FORMS)
def test_texts_that_begin_alike_are_those_alone(
    form: str, exported: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    fixture, methods = FORMS[form]
    bundle = exported(request.getfixturevalue(fixture))
    alone = BltRuntime.from_pretrained(bundle, max_bytes=MAX_BYTES, threads=1, sequences=1, reuse_prompts=False)
    runtime = BltRuntime.from_pretrained(bundle, max_bytes=MAX_BYTES, threads=1, sequences=PLACES)
    continued = 0
    for seed in SEEDS:
        for text in grow(runtime, methods, seed):
            expected = alone.generate(text.ids, text.new_bytes, **text.options).data
            assert text.data == (expected if text.whole else expected[: len(text.data)]), text.options
            continued += text.stream.stats.reused_bytes > 0
    stats = runtime.pool_stats
    assert stats.texts == TEXTS * len(SEEDS)
    assert min(continued, stats.reused) > stats.texts / 2
    assert min(stats.evicted, stats.saved, stats.restored) > 0
