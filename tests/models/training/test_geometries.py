"""Runs of models that differ from the shipped one: no patcher, documents masked, byte states, patches found once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.training_runs import MODEL_STEPS, RECIPE, records, trainer, weights

from fastblt.models.config import PatchingConfig
from fastblt.models.presets import preset
from fastblt.models.training.corpus import Split
from fastblt.models.training.run_files import PATCH_ENDS_FILE

pytestmark = pytest.mark.usefixtures("deterministic")

BYTE_STATES = {"decoder_input": "encoder", "block_size": 0}
SPACES = {"patcher": None, "patching": PatchingConfig(mode="space", max_patch_length=6)}


@pytest.mark.parametrize(
    "changes",
    [BYTE_STATES, {**BYTE_STATES, "document_masks": True}, SPACES, {"document_masks": True}],
    ids=["byte states", "byte states, documents", "spaces", "documents"],
)
def test_losses_fall(text: Split, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = dataclasses.replace(preset("tiny"), **changes)
    run = trainer(text, tmp_path, dataclasses.replace(RECIPE, model=model))
    losses: list[float] = []
    assert run.run(1e9, lambda progress, done, found: losses.append(found.get("clean_nats", 9.0)))
    assert losses[-1] < losses[-MODEL_STEPS]
    assert run.progress.phase == "done"
    assert ("patcher" in {r["phase"] for r in records(tmp_path)}) == (model.patcher is not None)


def test_loss_is_that_of_the_model_itself(text: Split, tmp_path: Path) -> None:
    model = dataclasses.replace(preset("tiny"), document_masks=True)
    run = trainer(text, tmp_path, dataclasses.replace(RECIPE, model=model, stale_segments=0))
    with torch.no_grad():
        found = run.losses.rest(0.0, np.random.default_rng(0))[1]["clean_nats"]
        ids, targets = run.losses.windows(0.0, np.random.default_rng(0))[:2]
        logits = run.model(ids)[0]
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())))


def test_patches_found_once_serve_a_run_that_continues(text: Split, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, patch_once=True)
    whole = trainer(text, tmp_path / "whole", recipe)
    assert whole.run(1e9)
    assert (tmp_path / "whole" / PATCH_ENDS_FILE).exists()
    shown: list[torch.Tensor] = []
    assert whole.losses.patch_ends is not None
    of_windows = whole.losses.patch_ends.of_windows

    def note(*arguments: Any) -> torch.Tensor:
        shown.append(of_windows(*arguments))
        return shown[-1]

    whole.losses.patch_ends.of_windows = note  # type: ignore[method-assign]
    whole.losses.rest(0.5, np.random.default_rng(0))
    assert 0.05 < float(shown[0].float().mean()) < 0.6
    plain = trainer(text, tmp_path / "plain", RECIPE)
    assert plain.run(1e9)
    name = "decoder.layers.0.wqkv.weight"
    assert not torch.equal(weights(tmp_path / "whole")[name], weights(tmp_path / "plain")[name])
