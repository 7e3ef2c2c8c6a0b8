"""The loop with a clock of its own (half a second per step), so that a run is the same at every speed."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from fakes.training_runs import (
    MODEL_STEPS,
    PATCHER_STEPS,
    QUALITY,
    RECIPE,
    STEP,
    KilledError,
    kill_after,
    records,
    trainer,
    weights,
)

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.training import loop
from fastblt.models.training.corpus import Split
from fastblt.models.training.loop import initialize
from fastblt.models.training.run_files import CHECKPOINT_FOLDER
from fastblt.models.training.state import Progress

pytestmark = pytest.mark.usefixtures("deterministic")


def test_losses_fall_when_trained(text: Split, tmp_path: Path) -> None:
    steps = 50
    recipe = dataclasses.replace(RECIPE, budget_seconds=steps * STEP, patcher_seconds=steps * STEP, batch=8)
    seen: dict[str, list[float]] = {}

    def on_step(progress: Progress, done: float, losses: dict[str, float]) -> None:
        assert 0 < done <= 1
        assert done == pytest.approx(progress.step / steps)
        for name, value in losses.items():
            seen.setdefault(name, []).append(value)

    run = trainer(text, tmp_path, recipe)
    assert run.run(1e9, on_step)
    assert sorted(seen) == ["clean_nats", "masked_nats", "patcher_nats"]
    for name, values in seen.items():
        assert len(values) == steps
        assert values[0] > 4.5
        assert sum(values[-5:]) / 5 < (0.85 if name == "masked_nats" else 0.5) * values[0], name
    # Masked bytes are harder than the next one: what is right of a block does not leak in.
    assert sum(seen["masked_nats"][-5:]) > sum(seen["clean_nats"][-5:])
    ids, _ = loop.sample_windows(text, 64, 96, loop.np.random.default_rng(0))
    rate = ids.numel() / int(run.model.segment(ids).closes.sum())
    assert rate == pytest.approx(recipe.bytes_per_patch, rel=0.25)


def test_checkpoint_is_that_of_the_run_when_done(text: Split, finished: Path) -> None:
    run = trainer(text, finished)
    assert run.resume()
    model = load_checkpoint(finished / CHECKPOINT_FOLDER)
    assert run.progress.phase == "done"
    assert model.config.patching.threshold == run.progress.threshold > 0
    found = model.state_dict()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(found[name], tensor.half().float()), name


def test_patcher_is_frozen_when_the_model_is_trained(text: Split, tmp_path: Path, finished: Path) -> None:
    run = trainer(text, tmp_path)
    with pytest.raises(KilledError):
        run.run(1e9, kill_after("model", 1))
    expected = weights(finished)
    for name, tensor in run.model.patcher.state_dict().items():
        assert torch.equal(expected[f"patcher.{name}"], tensor.half().float()), name


def test_log_has_one_record_per_evaluation(finished: Path) -> None:
    found = records(finished)
    progress = {f.name for f in dataclasses.fields(Progress)}
    assert [(r["phase"], r["step"]) for r in found] == [
        ("patcher", PATCHER_STEPS),
        ("model", 4),
        ("model", 8),
        ("model", MODEL_STEPS),
    ]
    assert found[0].keys() == progress | {"patcher_nats"}
    for record in found[1:]:
        assert record.keys() == progress | {"clean_nats", "masked_nats"} | QUALITY.keys()
        assert record["bits_per_byte"] == 3.5
        assert record["seconds"] == record["step"] * STEP
        assert record["total_seconds"] == (PATCHER_STEPS + record["step"]) * STEP
        assert record["tokens"] == record["step"] * 4 * 48
        assert record["threshold"] > 0


def test_run_is_evaluated_when_it_comes_in_pieces_shorter_than_eval_every(
    text: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, eval_every=4 * STEP, patcher_seconds=STEP)
    for _ in range(6):
        looks = itertools.count()
        monkeypatch.setattr(loop.time, "monotonic", lambda looks=looks: float(next(looks)))
        run = trainer(text, tmp_path, recipe)
        run.resume()
        run.run(3.5)  # three steps
    steps = [r["step"] for r in records(tmp_path) if r["phase"] == "model"]
    assert steps == [4, 8, MODEL_STEPS]


def test_runs_differ_when_seeds_do(text: Split, finished: Path, tmp_path: Path) -> None:
    trainer(text, tmp_path, dataclasses.replace(RECIPE, seed=2)).run(1e9)
    name = "decoder.layers.0.wqkv.weight"
    assert not torch.equal(weights(tmp_path)[name], weights(finished)[name])


def test_windows_are_long_in_the_last_part_of_a_run(text: Split, tmp_path: Path) -> None:
    run = trainer(text, tmp_path)
    for done, shape in ((0.0, (4, 48)), (0.69, (4, 48)), (0.71, (2, 96)), (0.99, (2, 96))):
        assert run.losses._shape(done) == shape


def test_initial_weights_have_the_documented_scales(tiny_model: Blt) -> None:
    model = Blt(tiny_model.config)
    torch.manual_seed(0)
    initialize(model)
    found = dict(model.named_parameters())
    for name, scale in (
        ("decoder.layers.0.wqkv.weight", 1.0),
        ("global_transformer.layers.1.feed_forward.w2.weight", 1.0),
        ("decoder.tok_embeddings.weight", 0.5),
        ("encoder.hash_embeddings.weight", 0.1),
    ):
        p = found[name]
        assert float(p.detach().std()) == pytest.approx(scale * p.shape[1] ** -0.5, rel=0.05), name
    assert (found["decoder.norm.weight"] == 1).all()


def test_distilled_blocks_are_trained_on(text: Split, finished: Path, tmp_path: Path) -> None:
    first: list[dict[str, float]] = []

    def note(progress: Progress, done: float, losses: dict[str, float]) -> None:
        first.append(losses)
        raise KilledError

    for part in (0.0, 1.0):
        run = trainer(text, tmp_path / str(part), dataclasses.replace(RECIPE, distilled=part))
        run.start_from(finished / CHECKPOINT_FOLDER)
        with pytest.raises(KilledError):
            run.run(1e9, note)
    assert first[0]["clean_nats"] == first[1]["clean_nats"]
    assert first[0]["masked_nats"] != first[1]["masked_nats"]
