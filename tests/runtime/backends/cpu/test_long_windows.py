"""Sequences in a batch whose windows are long: rows are those alone, to the bit or to the last bits of sums.

ONNX Runtime adds up what a row of attention sees in parts of 16384 slots divided by the width of a head. Where all that
a row sees is one part, sums are the same to the bit; otherwise parts begin elsewhere in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fakes.batch_twins import Play
from fakes.batches import check_same, rounds_of, write_alone, write_together
from shared_files import SharedFiles

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.models.tokens import encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.requests import ScoreRequest

#: Longer than a window and what a text grows by.
PROMPTS = (620, 777, 650, 900)


class Form(NamedTuple):
    """Describes a stack."""

    head: int
    """Width of a head."""
    window: int
    tolerance: float
    """Largest difference of a number; 0: none."""


#: The first is that of the shipped checkpoint.
FORMS = (Form(32, 256, 0.0), Form(64, 160, 0.0), Form(64, 512, 1e-4), Form(128, 640, 1e-4))


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"head of {form.head}, window of {form.window}")
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture(scope="module")
def bundle(
    form: Form,
    tiny_config: BltConfig,
    make_model: Callable[..., Blt],
    exported: Callable[..., Path],
    shared_files: SharedFiles,
) -> Path:
    """A BLT-D, every stack of which has two heads."""
    stacks = {
        part: dataclasses.replace(getattr(tiny_config, part), dim=2 * form.head, window=form.window)
        for part in ("patcher", "encoder", "decoder")
    }
    config = dataclasses.replace(
        tiny_config,
        global_transformer=dataclasses.replace(tiny_config.global_transformer, dim=4 * form.head, heads=4),
        **stacks,
    )
    name = f"tiny-head-{form.head}-window-{form.window}"
    return exported(shared_files.make(name, lambda folder: save_checkpoint(folder, make_model(config))))


def test_rows_and_caches_are_those_of_sequences_alone(form: Form, bundle: Path) -> None:
    backend = OnnxRuntimeBackend.load(bundle, 1200, 1)
    batch, random = backend.new_batch(4), np.random.default_rng(1)
    play = Play(backend, batch, 4, seed=2, tolerance=form.tolerance)
    for twins, length in zip(play.twins, PROMPTS, strict=True):
        twins.append(random.integers(4, 260, length).tolist())
        twins.answer(ScoreRequest(), ScoreRequest())
    play.run(30)
    batch.close()
    for twins in play.twins:
        twins.compare_states()


def test_texts_are_those_alone(form: Form, bundle: Path) -> None:
    """Byte by byte, whatever the last bits are."""
    runtime = BltRuntime.from_pretrained(bundle, max_bytes=1200, threads=1, sequences=4, reuse_prompts=False)
    random = np.random.default_rng(3)
    texts = [(encode(random.bytes(length)), 25) for length in PROMPTS]
    methods = ("ar", "s:4", "dv:4@one", "s:7")
    with rounds_of(runtime) as scheduler:
        assert scheduler.shares_calls
        found = write_together(runtime, scheduler, texts, *methods)
    check_same(found, write_alone(runtime, texts, *methods), form.tolerance)
