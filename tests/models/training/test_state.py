"""The saved state of a run: written in one step, and refused when it is damaged or of another run."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from fakes.training_runs import RECIPE, KilledError, kill_after, trainer, weights
from safetensors.torch import load_file

from fastblt.models import checkpoint
from fastblt.models.checkpoint import CheckpointError
from fastblt.models.training import state
from fastblt.models.training.corpus import Split
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, STATE_FILE
from fastblt.models.training.state import Progress

pytestmark = pytest.mark.usefixtures("deterministic")


def test_earlier_state_stays_when_a_save_fails(
    text: Split, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(text, tmp_path)
    with pytest.raises(KilledError):
        run.run(1e9, kill_after("patcher", 3))
    before = (tmp_path / STATE_FILE).read_bytes()

    def fail(descriptor: int) -> None:
        os.ftruncate(descriptor, 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    run = trainer(text, tmp_path)
    run.resume()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=f"No space left on device: .*{STATE_FILE}"):
            run.run(1e9)
    assert (tmp_path / STATE_FILE).read_bytes() == before
    again = trainer(text, tmp_path)
    assert again.resume()
    assert again.run(1e9)
    name = "decoder.layers.0.wqkv.weight"
    assert torch.equal(weights(tmp_path)[name], weights(finished)[name])


def test_state_is_replaced_in_one_step(text: Split, finished: Path, tmp_path: Path) -> None:
    """Whoever has the earlier file open still reads all of it: it is never written to."""
    path = tmp_path / STATE_FILE
    path.write_bytes((finished / STATE_FILE).read_bytes())
    (tmp_path / "earlier").hardlink_to(path)
    state.save_state(path, trainer(text, tmp_path).model, [], Progress())
    assert (tmp_path / "earlier").read_bytes() == (finished / STATE_FILE).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["earlier", STATE_FILE]
    assert trainer(text, tmp_path).resume()


def test_checkpoint_is_written_by_the_next_call_when_writing_it_failed(
    text: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fail)
        with pytest.raises(OSError, match="no space"):
            trainer(text, tmp_path).run(1e9)
    assert not (tmp_path / CHECKPOINT_FOLDER).exists()
    again = trainer(text, tmp_path)
    assert again.resume()
    assert again.run(1e9)
    assert weights(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "other model",
        "not safetensors",
        "no metadata",
        "pipe",
        "misshapen momentum",
        "{",
        "{" * 10**5,
        '{"step": -1}',
        '{"step": true}',
        '{"seconds": 1e400}',
        '{"phase": "party"}',
        '{"color": "red"}',
    ],
    ids=range(13),
)
def test_error_names_file_when_state_is_not_of_this_run(
    text: Split, finished: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / STATE_FILE
    recipe = RECIPE
    content = (finished / STATE_FILE).read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "not safetensors":
        path.write_bytes(b"{}" * 50)
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage.startswith("{"):
        tensors = load_file(finished / STATE_FILE)
        checkpoint.save_file(tensors, path, metadata={"progress": damage})
    elif damage == "misshapen momentum":
        tensors = load_file(finished / STATE_FILE)
        name = "optimizer.decoder.layers.0.wqkv.weight.momentum"
        progress = json.dumps(dataclasses.asdict(Progress()))
        checkpoint.save_file({**tensors, name: torch.zeros(1, 2)}, path, metadata={"progress": progress})
    elif damage == "no metadata":
        checkpoint.save_file({"model.x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
        recipe = dataclasses.replace(RECIPE, model="blt-d-8m")
    with pytest.raises(CheckpointError, match=r"state\.safetensors: not the state of this training run"):
        trainer(text, tmp_path, recipe).resume()
