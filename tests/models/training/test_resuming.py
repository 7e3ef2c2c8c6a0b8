"""A run that is killed or stopped: it continues from its last saved state, and equals an uninterrupted run."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.training_runs import MODEL_STEPS, RECIPE, KilledError, kill_after, trainer, weights

from fastblt.models.blt import Blt
from fastblt.models.config import ConfigError
from fastblt.models.training import loop
from fastblt.models.training.corpus import Split
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE, RECIPE_FILE, STATE_FILE

pytestmark = pytest.mark.usefixtures("deterministic")

KILLS = [("patcher", 1), ("patcher", 5), ("model", 1), ("model", 9)]


@pytest.mark.parametrize(("phase", "step"), KILLS)
def test_resumed_run_equals_uninterrupted_run_when_killed(
    text: Split, finished: Path, tmp_path: Path, phase: str, step: int
) -> None:
    """Weights, momenta, clock and randomness go on from the last save, wherever the process died."""
    with pytest.raises(KilledError):
        trainer(text, tmp_path).run(1e9, kill_after(phase, step))
    again = trainer(text, tmp_path)
    assert again.resume() == (tmp_path / STATE_FILE).exists() == ((phase, step) != ("patcher", 1))
    assert again.progress.step <= step
    assert again.run(1e9)
    expected = weights(finished)
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name
    whole = trainer(text, finished)
    whole.resume()
    assert again.progress == whole.progress


def test_resumed_run_equals_uninterrupted_run_when_stopped_by_the_deadline(
    text: Split, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call gets four steps; the state is saved at each deadline."""
    for call in range(4):  # of 6 + 9 steps
        # One look sets the deadline, each step costs one more.
        looks = itertools.count()
        monkeypatch.setattr(loop.time, "monotonic", lambda looks=looks: float(next(looks)))
        run = trainer(text, tmp_path)
        assert run.resume() == (call > 0)
        assert run.run(4.5) == (call == 3) == (tmp_path / CHECKPOINT_FOLDER).exists()
    expected = weights(finished)
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name


def test_run_goes_on_when_killed_in_the_evaluation_at_the_end_of_a_phase(
    text: Split, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved before the evaluation, which takes long; there is no step left then."""

    def die(model: Blt, text: Split) -> dict[str, float]:
        raise KilledError

    run = trainer(text, tmp_path, dataclasses.replace(RECIPE, eval_every=1e9))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", die)
        with pytest.raises(KilledError):
            run.run(1e9)
    assert (run.progress.phase, run.progress.step) == ("model", MODEL_STEPS)
    again = trainer(text, tmp_path)
    assert again.resume()
    assert again.run(1e9)
    expected = weights(finished)
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name


def test_nothing_is_trained_when_the_run_is_done(text: Split, finished: Path) -> None:
    before = weights(finished)
    run = trainer(text, finished)
    assert run.resume()
    assert run.run(1e9, kill_after("model", 1))
    for name, tensor in weights(finished).items():
        assert torch.equal(tensor, before[name])


def test_there_is_nothing_to_resume_when_the_folder_is_new(text: Split, tmp_path: Path) -> None:
    assert not trainer(text, tmp_path / "new").resume()


def test_state_is_saved_and_no_checkpoint_written_when_there_is_no_time(text: Split, tmp_path: Path) -> None:
    assert not trainer(text, tmp_path).run(0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [RECIPE_FILE, STATE_FILE]


@pytest.mark.parametrize(
    "changes", [{"seed": 2}, {"batch": 5}, {"budget_seconds": 99.0}, {"mask_weight": ((0.0, 1.0),)}], ids=repr
)
def test_error_names_field_when_the_run_has_another_recipe(
    text: Split, finished: Path, changes: dict[str, Any]
) -> None:
    (field,) = changes
    with pytest.raises(ConfigError, match=rf"recipe\.json: found a run with {field}="):
        trainer(text, finished, dataclasses.replace(RECIPE, **changes)).resume()


def test_run_may_be_saved_and_evaluated_more_often_when_resumed(text: Split, finished: Path) -> None:
    assert trainer(text, finished, dataclasses.replace(RECIPE, eval_every=1.0, save_every=0.5)).resume()


def test_resume_is_refused_when_the_recipe_is_another(text: Split, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        trainer(text, tmp_path).run(1e9, kill_after("model", 3))
    other = dataclasses.replace(RECIPE, matrix_lr=0.5)
    with pytest.raises(ConfigError, match="matrix_lr"):
        trainer(text, tmp_path, other).resume()


def test_half_a_record_is_dropped_when_resuming(text: Split, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        trainer(text, tmp_path).run(1e9, kill_after("model", 5))
    log = tmp_path / LOG_FILE
    before = log.read_bytes()
    log.write_bytes(before + b'{"phase": "mod')
    assert trainer(text, tmp_path).resume()
    assert log.read_bytes() == before
