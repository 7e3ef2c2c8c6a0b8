"""A run that starts from a checkpoint: its weights, its phases, and checkpoints that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.training_runs import MODEL_STEPS, RECIPE, KilledError, kill_after, records, trainer, weights

from fastblt.models import checkpoint
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import CheckpointError, load_checkpoint
from fastblt.models.config import ConfigError
from fastblt.models.training.corpus import Split
from fastblt.models.training.run_files import CHECKPOINT_FOLDER
from fastblt.models.training.state import Progress

pytestmark = pytest.mark.usefixtures("deterministic")


def test_run_that_starts_from_a_checkpoint_has_its_weights_and_no_patcher_phase(
    text: Split, finished: Path, tmp_path: Path
) -> None:
    run = trainer(text, tmp_path, dataclasses.replace(RECIPE, seed=5))
    run.start_from(finished / CHECKPOINT_FOLDER)
    threshold = load_checkpoint(finished / CHECKPOINT_FOLDER).config.patching.threshold
    assert run.progress == Progress("model", threshold=threshold)
    assert run.model.config.patching.threshold == threshold > 0
    given = weights(finished)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    phases = []
    assert run.run(1e9, lambda progress, done, losses: phases.append(progress.phase))
    assert phases == ["model"] * MODEL_STEPS
    assert [r["phase"] for r in records(tmp_path)] == ["model"] * 3
    trained = load_checkpoint(tmp_path / CHECKPOINT_FOLDER)
    assert trained.config.patching.threshold == threshold
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, given[name]) == name.startswith("patcher."), name


def test_run_that_started_from_a_checkpoint_goes_on_where_it_was_killed(
    text: Split, finished: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        run = trainer(text, folder)
        run.start_from(finished / CHECKPOINT_FOLDER)
        if folder == whole:
            assert run.run(1e9)
        else:
            with pytest.raises(KilledError):
                run.run(1e9, kill_after("model", 5))
    again = trainer(text, killed)
    assert again.resume()
    assert again.progress.phase == "model"
    assert again.run(1e9)
    expected = weights(whole)
    for name, tensor in weights(killed).items():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoint_may_have_another_name(text: Split, tiny_config: Any, tmp_path: Path) -> None:
    model = Blt(dataclasses.replace(tiny_config, name="theirs"))
    checkpoint.save_checkpoint(tmp_path / "theirs", model)
    run = trainer(text, tmp_path / "run")
    run.start_from(tmp_path / "theirs")
    assert torch.equal(run.model.decoder.output.weight, model.decoder.output.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 2}, "found block_size 2, expected 4 as in the recipe's model"),
        ({"decoder_input": "encoder", "block_size": 0}, "found decoder_input encoder, expected embedding"),
        ({"cross_attn_k": 4}, "found cross_attn_k 4, expected 2"),
    ],
)
def test_checkpoint_of_another_geometry_is_refused(
    text: Split, tiny_config: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "other"
    checkpoint.save_checkpoint(folder, Blt(dataclasses.replace(tiny_config, **changes)))
    run = trainer(text, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(ConfigError, match=f"other: {message}"):
        run.start_from(folder)
    assert run.progress == Progress()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())


def test_missing_checkpoint_to_start_from_is_named(text: Split, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        trainer(text, tmp_path).start_from(tmp_path / "nowhere")
