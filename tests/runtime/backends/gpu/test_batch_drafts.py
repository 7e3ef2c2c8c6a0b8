"""Drafts of several sequences: a pick that fails ends its own, and each is booked its share of what they cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.batches import rounds_of
from fakes.cuda import FakeCuda

from fastblt.runtime.backends.batching import DecoderCall, DraftCall, PatcherCall
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.protocol import DecoderRows
from fastblt.runtime.blt_runtime import BltRuntime

Load = Callable[..., DeviceBackend]


def seven(rows: DecoderRows) -> tuple[int, bool]:
    """Pick a token that the row does not decide."""
    return 7, True


@pytest.mark.parametrize("form", ["BLT engines", "BLT-D sessions"])
@pytest.mark.parametrize("others", [1, 0])
def test_pick_that_raises_ends_its_own_draft_only(load: Load, form: str, others: int) -> None:
    backend = load(form, 2)
    sequences, batch = [backend.new_sequence() for _ in range(2)], backend.new_batch(2)
    context, rows_seen = np.ones(backend.config.hash.context, dtype=np.int64), []

    def failing(rows: DecoderRows) -> tuple[int, bool]:
        rows_seen.append(rows)
        if len(rows_seen) == 2:
            raise LookupError("no such token")
        return 9, True

    calls = [DraftCall(5, context, 0, 4, failing, 0), DraftCall(5, context, 0, 4, seven, 0)][: 1 + others]
    answers = batch.run(list(zip(sequences, calls, strict=False)))
    assert isinstance(answers[0].error, LookupError)
    for answer in answers[1:]:
        assert answer.error is None
        assert answer.result.tokens.tolist() == [7] * 4
        # Two steps of two sequences, two of one.
        assert answer.calls == pytest.approx(1 / 2 + 1 / 2 + 1 + 1)
    batch.close()


@pytest.mark.parametrize("picked", [False, True])
def test_steps_of_a_draft_are_booked_to_those_that_they_serve(load: Load, picked: bool) -> None:
    backend = load("BLT-D engines", 4)
    lengths = (2, 6, 6, 3)
    sequences, batch = [backend.new_sequence() for _ in lengths], backend.new_batch(4)
    context, pick = np.ones(backend.config.hash.context, dtype=np.int64), seven if picked else None
    calls = [DraftCall(5, context, 0, most, pick, 0) for most in lengths]
    answers = batch.run(list(zip(sequences, calls, strict=True)))
    assert [len(answer.result.tokens) for answer in answers] == list(lengths)
    longest = 2 / 4 + 1 / 3 + 3 / 2
    assert [answer.calls for answer in answers] == pytest.approx([2 / 4, longest, longest, 2 / 4 + 1 / 3])
    short, *longest_two, middle = (answer.seconds for answer in answers)
    assert 0 < short < middle < longest_two[0] == pytest.approx(longest_two[1])
    graph = batch.graphs["decoder"]
    moved = {n: graph.moved_bytes(n) for n in (2, 3, 4)}
    assert answers[3].moved_bytes == pytest.approx(2 * moved[4] + moved[3])
    assert answers[1].moved_bytes == pytest.approx(2 * moved[4] + moved[3] + 3 * moved[2])
    batch.close()


def test_patcher_that_was_asked_ahead_is_booked_when_its_answer_is_taken(load: Load) -> None:
    backend = load("BLT-D engines", 2)
    sequences, batch = [backend.new_sequence() for _ in range(2)], backend.new_batch(2)
    one = np.ones(1, dtype=np.int64)
    rows = [DecoderCall(5, one, np.zeros(1, dtype=np.int64), 0, None) for _ in sequences]
    best = [answer.result.best.copy() for answer in batch.run(list(zip(sequences, rows, strict=True)))]
    asked = [(sequence, PatcherCall(6, ids, None)) for sequence, ids in zip(sequences, best, strict=True)]
    known = batch.run(asked)
    assert [answer.calls for answer in known] == [1 / 2, 1 / 2]
    weights = backend.executors["patcher"].spec.weight_bytes
    assert sum(answer.moved_bytes for answer in known) >= weights
    assert [answer.seconds for answer in known] == [0.0, 0.0]
    again = batch.run(asked)  # what was known has been taken
    for answer, other in zip(known, again, strict=True):
        np.testing.assert_allclose(answer.result, other.result, rtol=1e-5)
    assert again[0].seconds > 0
    batch.close()


def test_sampled_text_is_the_same_beside_one_whose_patch_outgrows_the_pool(long_patches: Path, gpu: FakeCuda) -> None:
    """The pool is found too small before anything is drawn, not in the middle of a draft, which would repeat it."""
    options: dict[str, Any] = {"method": "s:12", "temperature": 1.0}
    for length in (594, 600):
        backend = loading.load_tensorrt(long_patches, "tensorrt-rtx", 1000, 1, 2)
        runtime = BltRuntime(backend, reuse_prompts=False)
        expected = runtime.generate(b"xyz", 60, seed=3, **options).data
        with rounds_of(runtime) as scheduler:
            prompts = ((b"a" * length, 1), (b"xyz", 3))
            streams = [runtime.stream(prompt, 60, seed=seed, **options) for prompt, seed in prompts]
            found = b""
            while streams[1].open:
                growing = scheduler.step([stream for stream in streams if stream.open])
                if (chunk := growing[-1].chunk) is not None:
                    found += chunk.data
            streams[0].close()
        assert found == expected


def test_seconds_of_drafts_are_those_of_the_steps_that_each_took(load: Load) -> None:
    backend = load("BLT sessions, tables on the host", 2)
    sequences, batch = [backend.new_sequence() for _ in range(2)], backend.new_batch(2)
    context = np.ones(backend.config.hash.context, dtype=np.int64)
    calls = [DraftCall(5, context, 0, most, seven, 0) for most in (1, 16)]
    for answer in batch.run(list(zip(sequences, calls, strict=True))):
        assert 0 < answer.result.encoder_seconds < answer.seconds
    batch.close()
