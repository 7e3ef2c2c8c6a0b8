"""Two processes with half a batch each take the steps of one with the whole batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fakes.shared_runs import TEXT, run_processes
from fakes.training_runs import weights

from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.training.run_files import CHECKPOINT_FOLDER


@pytest.mark.slow
def test_losses_of_two_processes_equal_those_of_one(tiny_encoder_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    shutil.copytree(tiny_encoder_checkpoint, tmp_path / "base")
    one, two = (run_processes(count, tmp_path, tmp_path / str(count)) for count in (1, 2))
    assert len(one["adapt"]) == 4
    assert len(one["train"]) > 4
    for name, losses in one.items():
        assert two[name] == pytest.approx(losses, rel=2e-3), name
    for kind in ("adapt", "train"):
        ours, theirs = (weights(tmp_path / count / kind) for count in ("1", "2"))
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0.02, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert load_checkpoint(tmp_path / "2" / "adapt" / CHECKPOINT_FOLDER).config.has_draft
