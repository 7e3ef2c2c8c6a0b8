"""The loop with a clock of its own (half a second a step), so that a run is the same at every speed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastblt.models import checkpoint
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import CheckpointError, load_checkpoint
from fastblt.models.config import ConfigError
from fastblt.models.training import loop, state
from fastblt.models.training.corpus import Split
from fastblt.models.training.loop import Trainer, initialize
from fastblt.models.training.recipe import TrainConfig
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE, RECIPE_FILE, STATE_FILE
from fastblt.models.training.state import Progress

STEP = 0.5
PATCHER_STEPS = 6
MODEL_STEPS = 9
RECIPE = TrainConfig(
    model="tiny",
    budget_seconds=MODEL_STEPS * STEP,
    patcher_seconds=PATCHER_STEPS * STEP,
    bytes_per_patch=3.0,
    window=48,
    long_window=96,
    long_fraction=0.3,
    batch=4,
    blocks=32,
    eval_every=4 * STEP,
    save_every=2 * STEP,
)
QUALITY = {"bits_per_byte": 3.5, "acceptance_s8": 0.25}


def step_clock() -> Callable[[Trainer], float]:
    """Stands still but for half a second at every look, so that each step takes exactly that."""
    looks = itertools.count(1)
    return lambda trainer: next(looks) * STEP


class KilledError(BaseException):
    """What a test raises where a process would die."""


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_clock", step_clock())
    monkeypatch.setattr(loop, "evaluate", lambda model, text: dict(QUALITY))


@pytest.fixture(scope="module")
def text(make_split: Callable[[list[bytes]], Split]) -> Split:
    words = b"the model reads bytes and makes patches of them; "
    return make_split([words * 30, words[9:] * 20 + b"end", b"0123456789" * 40])


def trainer(text: Split, out: Path, recipe: TrainConfig = RECIPE) -> Trainer:
    return Trainer(recipe, text, text, out)


def kill_after(phase: str, step: int) -> Callable[[Progress, float, dict[str, float]], None]:
    def on_step(progress: Progress, done: float, losses: dict[str, float]) -> None:
        if (progress.phase, progress.step) == (phase, step):
            raise KilledError

    return on_step


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / CHECKPOINT_FOLDER).state_dict()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(text: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_clock", step_clock())
        patch.setattr(loop, "evaluate", lambda model, text: dict(QUALITY))
        assert trainer(text, folder).run(1e9)
    return folder


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
        ids, targets = run._windows(done, loop.np.random.default_rng(0))
        assert ids.shape == targets.shape == shape


def test_earlier_state_stays_when_a_save_fails(
    text: Split, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(text, tmp_path)
    with pytest.raises(KilledError):
        run.run(1e9, kill_after("patcher", 3))
    before = (tmp_path / STATE_FILE).read_bytes()

    def save_half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    run = trainer(text, tmp_path)
    run.resume()
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", save_half)
        with pytest.raises(OSError, match="no space"):
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


@pytest.mark.parametrize("damage", ["truncated", "other model", "not safetensors", "no metadata"])
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
    elif damage == "no metadata":
        checkpoint.save_file({"model.x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
        recipe = dataclasses.replace(RECIPE, model="blt-d-8m")
    with pytest.raises(CheckpointError, match=r"state\.safetensors: not the state of this training run"):
        trainer(text, tmp_path, recipe).resume()


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
