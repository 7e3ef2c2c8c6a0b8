"""What ends one text of a batch, or interrupts it, leaves the others with all that is theirs and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.batch_twins import Twins, answer_together, scored
from fakes.interrupts import Interrupts
from fakes.onnx_backends import OpenBackend, open_onnx

from fastblt.runtime.backends.batching import SHARED_ROWS, PartCall
from fastblt.runtime.backends.cpu import batch as batch_module
from fastblt.runtime.backends.cpu import batch_parts, lanes, seats
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.batch import OnnxRuntimeBatch
from fastblt.runtime.backends.cpu.batched_graph import GroupCall
from fastblt.runtime.backends.cpu.bound_graph import Binding
from fastblt.runtime.backends.cpu.draft_batch import DraftBatch
from fastblt.runtime.backends.cpu.lanes import Lanes
from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import CapacityError, DecoderRows, Pick
from fastblt.runtime.sequence.requests import DraftRequest, ScoreRequest
from fastblt.runtime.sequence.sampling import Sampler, SamplingError


@pytest.fixture
def blt_d(open_backend: OpenBackend) -> OnnxRuntimeBackend:
    return open_onnx(open_backend, "embedding", 600)


def step(batch: OnnxRuntimeBatch, *twins: Twins) -> None:
    """Let twins score another byte in the batch."""
    for each in twins:
        each.append([9])
    answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in twins])


def next_call(twins: Twins) -> PartCall:
    """Return the first call that scores another byte."""
    twins.shared.append([9])
    return next(twins.shared.calls(ScoreRequest()))


def end(*twins: Twins) -> None:
    for each in twins:
        each.shared.close()
        each.alone.close()


def test_interrupt_while_seats_change_leaves_everyone_the_own_caches(blt_d: OnnxRuntimeBackend) -> None:
    """One text calls; another one has to move to a seat that has become free, or to leave."""
    interrupts = Interrupts(batch_module, batch_parts, lanes, seats)
    batch = blt_d.new_batch(3)

    def arrange(leaving: bool) -> tuple[list[Twins], Callable[[], object]]:
        """Return texts in the batch, of which the last one's caches are to be copied, and what does so."""
        twins = scored(blt_d, 3, 30)
        step(batch, *twins)
        step(batch, *twins[::-1][:2])
        if leaving:
            twins.append(*scored(blt_d, 1, 20))
            twins = [twins[3], *twins[1:3], twins[0]]
        else:
            end(twins.pop(0))
        call = next_call(twins[0])
        return twins, lambda: batch.run([(twins[0].shared.sequence, call)])

    for leaving in (False, True):
        after, interrupted = 0, True
        while interrupted:
            (calling, *others), run = arrange(leaving)
            interrupted = interrupts.interrupt(run, after)
            after += 61
            end(calling)
            others += scored(blt_d, 3 - len(others), 25)
            for _ in range(2):
                step(batch, *others)
            for each in others:
                each.compare_states()
            end(*others)
        assert after > 1000


def test_interrupt_while_caches_are_bound_leaves_no_call_over_two_ranges_of_lanes(
    blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, (first, second) = blt_d.new_batch(2), scored(blt_d, 2, 30)
    step(batch, first, second)
    point, left = Binding.point, 0

    def interrupted(binding: Binding, *arguments: Any) -> None:
        nonlocal left
        left -= isinstance(binding, GroupCall)
        if left == 0 and isinstance(binding, GroupCall):
            raise KeyboardInterrupt
        point(binding, *arguments)

    monkeypatch.setattr(Binding, "point", interrupted)
    step(batch, second)
    caches = 2 * len(batch.lanes["patcher"].names)
    for at in range(1, caches + 1):
        step(batch, first)
        call, left = next_call(second), at
        with pytest.raises(KeyboardInterrupt):
            batch.run([(second.shared.sequence, call)])
        end(second)
        (second,) = scored(blt_d, 1, 30)
        step(batch, first)
        step(batch, second)
    first.compare_states()


def test_a_long_call_that_is_interrupted_leaves_no_seat(
    blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the interrupt comes before the sequence is in the batch again."""
    batch, twins = blt_d.new_batch(2), scored(blt_d, 2, 30)
    step(batch, *twins)

    def interrupted(sequence: OnnxRuntimeSequence, call: PartCall) -> None:
        sequence.batch = None
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxRuntimeSequence, "run_in_place", interrupted)
    twins[0].shared.append(range(4, 4 + SHARED_ROWS + 1))
    call = next(twins[0].shared.calls(ScoreRequest()))
    with pytest.raises(KeyboardInterrupt):
        batch.run([(twins[0].shared.sequence, call)])
    assert batch._seats.sequences == [None, twins[1].shared.sequence]
    step(batch, twins[1])
    batch.close()


def test_memory_that_ends_lets_texts_go_on_alone(blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that they have computed in the batch."""
    batch, twins = blt_d.new_batch(2), scored(blt_d, 2, 30)
    step(batch, *twins)
    place, placed = Lanes.place, 0

    def fail(*arguments: Any) -> None:
        nonlocal placed
        placed += 1
        if placed == 2:
            raise CapacityError("lanes: found no memory")
        place(*arguments)

    monkeypatch.setattr(Lanes, "place", fail)
    with pytest.raises(CapacityError):
        batch.run([(each.shared.sequence, next_call(each)) for each in twins])
    for each in twins:
        assert getattr(each.shared.sequence, "batch", batch) is None
        each.alone.append([9])
        each.answer(ScoreRequest(), ScoreRequest())
        each.compare_states()


def test_memory_that_ends_in_a_draft_ends_it(blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be made again alone: bytes have been picked."""
    batch, twins = blt_d.new_batch(2), scored(blt_d, 2, 30)
    grow, grown = DraftBatch._grow, 0

    def fail(*arguments: Any) -> None:
        nonlocal grown
        grown += 1
        if grown == 2:
            raise CapacityError("lanes: found no memory")
        grow(*arguments)

    monkeypatch.setattr(DraftBatch, "_grow", fail)
    calls = []
    for most, each in zip((2, 40), twins, strict=True):
        each.append([9])
        calls.append((each.shared.sequence, next(each.shared.calls(DraftRequest(most, None, "closed")))))
    with pytest.raises(GraphError, match=r"decoder: failed while it ran \(lanes: found no memory"):
        batch.run(calls)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
def test_row_that_is_no_number_ends_one_draft_only(
    open_backend: OpenBackend, decoder_input: str, sampled: bool
) -> None:
    backend = open_onnx(open_backend, decoder_input, 400)
    batch, twins = backend.new_batch(3), scored(backend, 3, 40)
    step(batch, *twins)
    for part in batch.lanes.values():
        if part.class_of[1] >= 0:
            for memory in part.buffers(part.class_of[1]).values():
                memory.array[1] = np.nan

    def pick(seed: int) -> Pick | None:
        sampler = Sampler(temperature=1.0, seed=seed)

        def draw(row: DecoderRows) -> tuple[int, bool]:
            return sampler.draw(row, 0)[0], True

        return draw if sampled else None

    calls, expected = [], []
    for seed, each in enumerate(twins):
        each.append([9])
        calls.append(next(each.shared.calls(DraftRequest(5, pick(seed), "closed"))))
        if seed != 1:
            expected.append(each.alone.answer(DraftRequest(5, pick(seed), "closed")))
    answers = batch.run([(each.shared.sequence, call) for each, call in zip(twins, calls, strict=True)])
    taken = [twins[index].shared.parts.take(calls[index], answers[index]) for index in (0, 2)]
    for each, drafted, other in zip(twins[::2], taken, expected, strict=True):
        each.compare((drafted.tokens, drafted.probabilities), tuple(other))
    with pytest.raises(SamplingError if sampled else GraphError, match=r"no number|expected a finite number"):
        twins[1].shared.parts.take(calls[1], answers[1])
    end(twins.pop(1))
    twins += scored(backend, 1, 20)
    step(batch, *twins)
    for each in twins:
        each.compare_states()


def test_token_that_does_not_exist_ends_one_draft_only(tiny_encoder_checkpoint: Path, exported: Any) -> None:
    """The others' next row is computed in the same call as the one that would read it."""
    backend = OnnxRuntimeBackend.load(exported(tiny_encoder_checkpoint, hash_tables="graph"), 400, 1)
    batch, twins = backend.new_batch(2), scored(backend, 2, 40)
    picks: tuple[Pick | None, ...] = (lambda row: (260, True), None)
    calls = []
    for each, pick in zip(twins, picks, strict=True):
        each.append([9])
        calls.append(next(each.shared.calls(DraftRequest(4, pick, "closed"))))
    answers = batch.run([(each.shared.sequence, call) for each, call in zip(twins, calls, strict=True)])
    with pytest.raises(GraphError, match="it found token 260, expected 0 to 259"):
        twins[0].shared.parts.take(calls[0], answers[0])
    drafted = twins[1].shared.parts.take(calls[1], answers[1])
    twins[1].compare(
        (drafted.tokens, drafted.probabilities), tuple(twins[1].alone.answer(DraftRequest(4, None, "closed")))
    )
