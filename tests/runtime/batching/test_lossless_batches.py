"""Sampled texts that grow together are distributed like autoregression, and independent: chi-squared, fixed seeds.

The model is `TableBackend`, whose every continuation has a probability that is known exactly. Its batch overwrites what
it has answered as soon as it is called again, as batches may.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from fakes.table_backend import Distributions, TableBackend, Text, enumerate_texts, naive_distribution, surprise
from fakes.table_backend import table_logits as logits_after
from fakes.watched_batch import WatchedBackend, WatchedBatch

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID
from fastblt.runtime.backends.batching import Answer, DecoderCall, PartCall
from fastblt.runtime.backends.protocol import Backend, BackendSequence, DecoderRows
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream

LENGTH = 4
SAMPLES = 1000
STREAMS = 8
#: A right scheme is refused once in a thousand seeds, and the seeds are fixed; the wrong ones are far beyond.
REFUSED = 1e-3
FOUND_OUT = 1e-7
START = (BOS_ID, 1, 0)
METHODS = ("ar", "s:2", "s:4", "s:3+partial", "dv:4@one", "dv:4@0.4+partial", "dv:3@eb0.2+block", "s:3")


class TableSequences(TableBackend):
    """A backend whose every sequence is a table of its own; rows that are known are known to all."""

    sequences = STREAMS

    def new_sequence(self) -> TableBackend:  # type: ignore[override]
        made = TableBackend(self.config)
        made._known = self._known
        return made


class OverwritingBatch(WatchedBatch):
    """A batch whose answers are gone with its next call."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.answered: list[DecoderRows] = []

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        for rows in self.answered:
            rows.best.fill(-1)
            for floats in rows[1:]:
                floats.fill(np.nan)
        found = [self._copied(answer) for answer in super().run(calls)]
        self.answered = [answer.result for answer in found if isinstance(answer.result, DecoderRows)]
        return found

    def _copied(self, answer: Answer) -> Answer:
        copied = answer.result.copy() if isinstance(answer.result, DecoderRows) else answer.result
        return answer._replace(result=copied)


class SwappingBatch(OverwritingBatch):
    """A wrong one: where two sequences decode one row each, they get each other's."""

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        found = super().run(calls)
        single = [i for i, (_, call) in enumerate(calls) if isinstance(call, DecoderCall) and len(call.ids) == 1]
        for a, b in zip(single[::2], single[1::2], strict=False):
            found[a], found[b] = found[b], found[a]
        return found


@pytest.fixture(scope="module")
def table(tiny_config: BltConfig) -> TableSequences:
    return TableSequences(tiny_config)


@pytest.fixture(scope="module")
def expected(tiny_config: BltConfig) -> Distributions:
    longest = tiny_config.patching.max_patch_length
    assert longest is not None
    return enumerate_texts(
        lambda prefix: logits_after(prefix, longest),
        START,
        LENGTH,
        lambda logits: naive_distribution(logits, 0.9, top_p=0.9),
    )


def sample_together(table: TableSequences, methods: Sequence[str], kind: type[WatchedBatch]) -> list[Text]:
    """Return sampled texts, of each method in turn; eight grow at a time, and as one ends the next begins."""
    watched = WatchedBackend(cast("Backend", table))
    batch = kind(STREAMS)
    watched.new_batch = lambda size: batch  # type: ignore[method-assign]
    runtime = BltRuntime(cast("Backend", watched), reuse_prompts=False)
    scheduler = RoundScheduler(runtime.backend, STREAMS)
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "stop_at_eos": False}
    waiting = deque(range(SAMPLES))
    running: dict[int, ByteStream] = {}
    found: list[Text] = [()] * SAMPLES
    while waiting or running:
        while waiting and len(running) < STREAMS:
            index = waiting.popleft()
            method = methods[index % len(methods)]
            running[index] = runtime.stream(np.array(START), LENGTH, method=method, seed=index, **options)
        for index, step in zip(list(running), scheduler.step(list(running.values())), strict=True):
            assert step.error is None
            if not running[index].open:
                found[index] = tuple(running.pop(index).tokens)
    served = [count for _, count in batch.calls]
    assert sum(count for count in served if count > 1) > 0.7 * sum(served), "most calls are shared"
    return found


@pytest.mark.parametrize("methods", [METHODS, ("s:4",)], ids=["mixed", "s:4"])
def test_texts_that_grow_together_are_distributed_like_autoregression(
    table: TableSequences, expected: Distributions, methods: Sequence[str]
) -> None:
    texts = sample_together(table, methods, OverwritingBatch)
    assert surprise(Counter(texts), expected) > REFUSED
    # Neighbors know nothing of each other.
    beginnings: Distributions = {}
    for text, p in expected.items():
        beginnings[text[:2]] = beginnings.get(text[:2], 0.0) + p
    pairs = {(*a, *b): p * q for a, p in beginnings.items() for b, q in beginnings.items()}
    seen = Counter((*a[:2], *b[:2]) for a, b in zip(texts[::2], texts[1::2], strict=True))
    assert surprise(seen, pairs) > REFUSED


def test_rows_that_reach_the_wrong_text_are_found_out(table: TableSequences, expected: Distributions) -> None:
    assert surprise(Counter(sample_together(table, ("ar",), SwappingBatch)), expected) < FOUND_OUT
