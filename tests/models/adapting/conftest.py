"""Provides text, a recipe of a few steps, and a clock of runs over them."""

from __future__ import annotations

import itertools

import pytest

from fastblt.models.adapting.loop import Adapter
from fastblt.models.adapting.quality import HeldOut
from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.adapting.text_files import Text, open_text

STEP = 0.5
RECIPE = AdaptConfig(
    steps=6, batch=4, window=48, block_size=4, rank=3, blocks=16, eval_every=4, save_every=2 * STEP, hold=0.0
)


@pytest.fixture
def recipe() -> AdaptConfig:
    return RECIPE


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(b"".join(b"%d bottles of beer on the wall, %d bottles of beer; " % (i, i) for i in range(200)))
    return open_text([path], RECIPE.window)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give runs a clock of their own, and known figures in place of their evaluations."""
    looks = itertools.count(1)
    monkeypatch.setattr(Adapter, "_clock", lambda adapter: next(looks) * STEP)
    monkeypatch.setattr(HeldOut, "original", lambda held_out, model: {"bits_per_byte": 3.5})
    monkeypatch.setattr(HeldOut, "drafts", lambda held_out, model: {"acceptance_dv": 0.25})
