"""Where a batch keeps its sequences: several batches side by side, and what each of them has run before any text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from fakes.batches import texts_of
from fakes.cuda import FakeCuda

from fastblt.runtime.backends.batching import PatcherCall
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.places import Exchange, block_of
from fastblt.runtime.backends.gpu.sequence import DeviceSequence
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime

Load = Callable[..., DeviceBackend]


def ask(batch: Any, sequences: list[DeviceSequence], count: int = 5) -> Any:
    ids = np.arange(count, dtype=np.int64)
    return batch.run([(sequence, PatcherCall(0, ids, None)) for sequence in sequences])


@pytest.fixture
def swaps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places that slots have moved to, in order."""
    found: list[int] = []
    swap = Exchange.swap

    def noted(self: Exchange, one: Any, other: Any) -> None:
        found.append(other.place)
        swap(self, one, other)

    monkeypatch.setattr(Exchange, "swap", noted)
    return found


@pytest.mark.parametrize(
    ("size", "count", "start", "taken", "expected"),
    [
        (2, 8, 4, [], range(4, 6)),
        (3, 8, 4, [], range(4, 8)),
        (2, 8, 4, [frozenset({5})], range(2)),
        (2, 8, 4, [frozenset({5}), range(2)], range(2, 4)),
        (3, 6, 4, [], range(4)),
        (5, 6, 0, [], range(6)),
        (2, 4, 0, [frozenset({0, 2})], None),
    ],
)
def test_block_is_the_first_range_without_places_of_others(
    size: int, count: int, start: int, taken: list[Any], expected: range | None
) -> None:
    assert block_of(size, count, start, taken) == expected


def test_batches_side_by_side_leave_each_other_where_they_are(load: Load, swaps: list[int]) -> None:
    backend = load("BLT-D sessions", 8)
    sequences = [backend.new_sequence() for _ in range(8)]
    one, other = backend.new_batch(4), backend.new_batch(4)
    assert (one.home, other.home) == (range(4), range(4, 8))
    mine, yours = sequences[::2], sequences[1::2]
    for _ in range(3):
        found, same = ask(one, mine), ask(other, yours)
    assert len(swaps) == 2, "those of the first batch that were elsewhere; that brings the others home"
    assert {sequence.slot.place for sequence in mine} == set(range(4))
    assert {sequence.slot.place for sequence in yours} == set(range(4, 8))
    for answers, members in ((found, mine), (same, yours)):
        assert {answer.calls for answer in answers} == {1 / 4}
        for answer, sequence in zip(answers, members, strict=True):
            np.testing.assert_allclose(answer.result, sequence.run_patcher(0, np.arange(5, dtype=np.int64)), rtol=1e-5)
    swaps.clear()
    # One leaves; two that remain are called by themselves.
    one.leave(mine[0])
    for _ in range(3):
        ask(one, mine[1:3])
        ask(other, yours)
    assert len(swaps) <= 2
    assert {sequence.slot.place for sequence in yours} == set(range(4, 8)), "nobody has moved them"


def test_batch_is_warmed_up_while_sequences_are_open_and_records_nothing_later(load: Load, gpu: FakeCuda) -> None:
    backend = load("BLT-D engines", 4)
    backend.warm_up()
    sequences = [backend.new_sequence() for _ in range(4)]
    for seed, sequence in enumerate(sequences):
        sequence.run_patcher(0, np.random.default_rng(seed).integers(4, 260, 9))
    held = [sequence.tensor("patcher.key_0", 0, 9).tobytes() for sequence in sequences]
    batch = backend.new_batch(4)
    assert [sequence.tensor("patcher.key_0", 0, 9).tobytes() for sequence in sequences] == held

    def bound() -> list[int]:
        return [len(graph._classes) for graph in batch.graphs.values()]

    classes, recorded = bound(), set(gpu.executables)
    for members in (sequences[:2], sequences[:3], sequences, sequences[2:]):
        for count in (1, 5, 9):
            ask(batch, members, count)
    assert bound() == classes
    assert set(gpu.executables) == recorded
    batch.close()


def test_texts_of_two_batches_are_those_of_texts_alone(load: Load) -> None:
    texts = texts_of(6)
    alone = BltRuntime(load("BLT engines", 1))
    expected = [alone.generate(text, size, method="s:4").data for text, size in texts]
    runtime = BltRuntime(load("BLT engines", 6))
    with closing(RoundScheduler(runtime.backend, 3)) as one, closing(RoundScheduler(runtime.backend, 3)) as other:
        streams = [runtime.stream(text, size, method="s:4") for text, size in texts]
        found: list[bytes] = [b""] * 6
        groups = {one: [0, 2, 4], other: [1, 3, 5]}
        while any(stream.open for stream in streams):
            for scheduler, members in groups.items():
                growing = [index for index in members if streams[index].open]
                for index, grown in zip(growing, scheduler.step([streams[i] for i in growing]), strict=True):
                    if grown.chunk is not None:
                        found[index] += grown.chunk.data
    assert found == expected
