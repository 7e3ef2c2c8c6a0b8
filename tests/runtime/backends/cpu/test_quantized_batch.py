"""Sequences of a quantized model in a batch: their calls have two rows at least, one of which nobody may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.batch_twins import Play, Twins, answer_together
from fakes.batches import check_same, rounds_of, texts_of, write_alone, write_together
from shared_files import SharedFiles

from fastblt.calibration.calibrate import calibrate
from fastblt.calibration.heldout import load_prompts, load_text
from fastblt.calibration.request import CalibrationRequest
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.sequence import QUANTIZED_ROWS
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.scoring.windows import Text, cut_windows
from fastblt.runtime.sequence.requests import DraftRequest, ScoreRequest


@pytest.fixture(scope="module", params=["w8", "w4"])
def backend(request: pytest.FixtureRequest, tiny_bundle: Path, shared_files: SharedFiles) -> OnnxRuntimeBackend:
    scheme = request.param

    def quantize(out: Path) -> None:
        windows = tuple(cut_windows(Text("web", load_text("web")), 1, 96))
        given = CalibrationRequest(
            scheme,
            prompts=(load_prompts("web")[0].data[:40],),
            windows=windows,
            samples=16,
            new_bytes=16,
            anchors=1,
            budget={"bpb": 10.0},
        )
        calibrate(tiny_bundle, out, given)

    return OnnxRuntimeBackend.load(shared_files.make(f"tiny-{scheme}", quantize), 400, 1)


def test_rows_and_caches_are_those_of_sequences_alone(backend: OnnxRuntimeBackend) -> None:
    """To the bit, whatever they do."""
    batch = backend.new_batch(4)
    play = Play(backend, batch, 4, seed=3)
    play.run(40)
    batch.close()
    for twins in play.twins:
        twins.compare_states()


@pytest.mark.parametrize("most", [1, 3])
def test_drafts_end_in_the_last_slot_of_a_lane(backend: OnnxRuntimeBackend, most: int) -> None:
    """The row behind a draft's last one, which nobody asked for, has a slot as well."""
    batch = backend.new_batch(2)
    [slots, *_] = batch.lanes["decoder"].classes.slots
    twins = [Twins(backend) for _ in range(2)]
    for each in twins:
        each.append(range(4, 4 + slots - most))  # with BOS, the last row of the draft has the last slot
        each.answer(ScoreRequest(most=slots - most), ScoreRequest(most=slots - most))
    assert QUANTIZED_ROWS == 2
    answer_together(batch, [(each, (DraftRequest(most, None, "closed"),) * 2) for each in twins])
    batch.close()


@pytest.mark.parametrize("methods", [("s:1",), ("s:1", "s:2", "s:8", "ar")], ids=["K=1", "mixed"])
def test_texts_are_those_alone(backend: OnnxRuntimeBackend, methods: tuple[str, ...]) -> None:
    """To the bit of every probability, with drafts of one length and of several."""
    runtime = BltRuntime(backend, reuse_prompts=False)
    texts = texts_of(12, longest=200)
    with rounds_of(runtime) as scheduler:
        assert scheduler.shares_calls
        found = write_together(runtime, scheduler, texts, *methods)
    check_same(found, write_alone(runtime, texts, *methods), tolerance=0)
