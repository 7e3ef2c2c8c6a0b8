"""Provides a text, an uninterrupted run over it and the clock of such a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.training_runs import QUALITY, step_clock, trainer

from fastblt.models.training import loop
from fastblt.models.training.corpus import Split
from fastblt.models.training.loop import Trainer


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give runs a clock of their own, and known figures in place of their evaluations."""
    monkeypatch.setattr(Trainer, "_clock", step_clock())
    monkeypatch.setattr(loop, "evaluate", lambda model, text: dict(QUALITY))


@pytest.fixture(scope="session")
def text(make_split: Callable[[list[bytes]], Split]) -> Split:
    words = b"the model reads bytes and makes patches of them; "
    return make_split([words * 30, words[9:] * 20 + b"end", b"0123456789" * 40])


@pytest.fixture(scope="session")
def finished(text: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_clock", step_clock())
        patch.setattr(loop, "evaluate", lambda model, text: dict(QUALITY))
        assert trainer(text, folder).run(1e9)
    return folder
