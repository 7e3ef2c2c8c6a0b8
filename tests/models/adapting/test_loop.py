"""Adapting a checkpoint: what is written, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fastblt.models.adapting import memory, quality
from fastblt.models.adapting.loop import Adapter
from fastblt.models.adapting.memory import MemoryTooSmallError
from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.adapting.text_files import Text
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from fastblt.models.config import BltConfig, ConfigError
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE, RECIPE_FILE, STATE_FILE

Adapt = Callable[..., Adapter]


@pytest.fixture(autouse=True)
def few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate on a few windows: this is about training."""
    monkeypatch.setattr(quality, "_WINDOWS", 4)


@pytest.fixture
def adapt(text: Text, recipe: AdaptConfig, tiny_encoder_checkpoint: Path, tmp_path: Path) -> Adapt:
    """``adapt(folder, base, **changes)``: a run of the recipe with changes."""

    def make(folder: str = "run", base: Path = tiny_encoder_checkpoint, **changes: Any) -> Adapter:
        return Adapter(dataclasses.replace(recipe, **changes), open_checkpoint(base), text, tmp_path / folder)

    return make


def losses(run: Adapter, max_steps: int = 10**6) -> list[float]:
    """The losses of a run that is stopped after some steps."""
    found: list[float] = []

    class StoppedError(Exception):
        pass

    def on_step(progress: object, done: float, report: dict[str, float]) -> None:
        found.append(report["draft_nats"])
        if len(found) == max_steps:
            raise StoppedError

    with suppress(StoppedError):
        assert run.run(1e9, on_step)
    return found


def weights(run: Adapter) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.draft.state_dict().items()}


@pytest.mark.parametrize("rank", [3, None])
def test_everything_but_the_draft_decoder_stays_what_it_was(
    adapt: Adapt, tiny_encoder_model: Blt, tiny_encoder_config: BltConfig, rank: int | None, tmp_path: Path
) -> None:
    base = tmp_path / "half"
    save_checkpoint(base, tiny_encoder_model, torch.float16)
    run = adapt(base=base, rank=rank, steps=3)
    before = weights(run)
    assert run.run(1e9)
    changed = {name for name, tensor in weights(run).items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)
    out = run.out / CHECKPOINT_FOLDER
    found, original = open_checkpoint(out), open_checkpoint(base)
    assert found.config == dataclasses.replace(original.config, decoder_input="mixed", block_size=4, draft_rank=rank)
    for name in original.pieces:
        assert found.dtype(name) == original.dtype(name)
        assert torch.equal(found.store.read(name), original.store.read(name))
    adapted, plain = load_checkpoint(out), load_checkpoint(base)
    assert all(
        torch.equal(t, weights(run)[n.removeprefix("draft.")])
        for n, t in adapted.state_dict().items()
        if n[:6] == "draft."
    )
    ids = torch.randint(4, 260, (2, 60))
    ids[:, 0] = 1
    assert torch.equal(adapted(ids)[0], plain(ids)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 3, "distilled": 0.0, "steps": 30, "learning_rate": 0.02},
        {"rank": None, "distilled": 1.0, "steps": 40, "batch": 8},
    ],
)
def test_drafts_are_learned(adapt: Adapt, changes: dict[str, Any]) -> None:
    run = adapt(**{"hold": 1.0, "position_decay": 2.0, **changes})
    found = losses(run)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    records = [json.loads(line) for line in (run.out / LOG_FILE).read_text().splitlines()]
    assert {"bits_per_byte", "acceptance_s8"} <= records[0].keys()
    assert {"acceptance_dv", "masked_accuracy_t50", "masked_accuracy_t100", "draft_nats"} <= records[-1].keys()


@pytest.mark.usefixtures("deterministic")
def test_run_that_was_killed_or_stopped_continues_where_it_was(adapt: Adapt) -> None:
    expected = adapt("whole")
    curve = losses(expected)
    killed = adapt()
    assert losses(killed, 5) == curve[:5]
    again = adapt()
    assert again.resume()
    first = again.progress.step
    assert 0 < first < 5
    assert losses(again) == curve[first:]
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), weights(expected).values(), strict=True))


def test_step_is_the_same_in_pieces_and_with_activations_computed_twice(adapt: Adapt) -> None:
    whole = losses(adapt("a", steps=3))
    assert losses(adapt("b", steps=3, accumulate=2)) == pytest.approx(whole, rel=1e-4)
    assert losses(adapt("c", steps=3, checkpoint_activations=True)) == pytest.approx(whole, rel=1e-5)


def test_time_that_is_up_is_a_pause(adapt: Adapt) -> None:
    run = adapt(steps=2)
    assert not run.run(0)
    assert not (run.out / CHECKPOINT_FOLDER).exists()
    again = adapt(steps=2)
    assert again.resume()
    assert again.run(1e9)
    assert (run.out / CHECKPOINT_FOLDER).is_dir()
    shutil.rmtree(run.out / CHECKPOINT_FOLDER)  # a run that was killed before its checkpoint was written
    last = adapt(steps=2)
    assert last.resume()
    assert last.run(1e9)
    assert (run.out / CHECKPOINT_FOLDER).is_dir()


@pytest.mark.usefixtures("deterministic")
def test_run_that_is_called_again_continues_where_it_was(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = adapt("whole", checkpoint_activations=True)
    assert expected.run(1e9)
    run = adapt(checkpoint_activations=True)
    looks = iter([0.0] * 4 + [1.0])  # the deadline of the first call, three steps, and its end
    with monkeypatch.context() as patched:
        patched.setattr("fastblt.models.adapting.loop.time.monotonic", lambda: next(looks))
        assert not run.run(0.5)
    assert run.progress.step == 3
    assert run.run(1e9)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(expected).values(), strict=True))


def test_run_that_was_killed_before_its_first_save_begins_anew(adapt: Adapt) -> None:
    killed = adapt(steps=2, save_every=1e6)
    assert len(losses(killed, 1)) == 1
    with (killed.out / LOG_FILE).open("a") as file:
        file.write('{"phase": "mo')
    again = adapt(steps=2)
    assert not again.resume()
    assert again.run(1e9)
    steps = [json.loads(line)["step"] for line in (again.out / LOG_FILE).read_text().splitlines()]
    assert steps == [0, 2]


@pytest.mark.parametrize("rank", [3, None])
def test_fixed_parts_in_bf16_are_trained_beside_and_evaluated(
    adapt: Adapt, monkeypatch: pytest.MonkeyPatch, rank: int | None
) -> None:
    def in_bf16(base: Checkpoint, device: str, dtype: torch.dtype) -> Blt:
        return load_model(base, device=device, dtype=torch.bfloat16)  # as on a GPU

    monkeypatch.setattr("fastblt.models.adapting.loop.load_model", in_bf16)
    run = adapt(steps=2, rank=rank)
    assert len(losses(run)) == 2
    assert "acceptance_dv" in json.loads((run.out / LOG_FILE).read_text().splitlines()[-1])
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


def test_document_masks_and_other_patch_rules_are_adapted(
    adapt: Adapt, tiny_encoder_config: BltConfig, make_model: Callable[..., Blt], tmp_path: Path
) -> None:
    rules = dataclasses.replace(tiny_encoder_config.patching, mode="space", max_patch_length=None)
    for index, changes in enumerate(({"document_masks": True}, {"patching": rules, "patcher": None})):
        base = tmp_path / f"base{index}"
        save_checkpoint(base, make_model(dataclasses.replace(tiny_encoder_config, **changes)))
        assert len(losses(adapt(f"run{index}", base=base, steps=2))) == 2


def test_checkpoint_with_blocks_is_refused(adapt: Adapt, tiny_checkpoint: Path, tiny_mixed_checkpoint: Path) -> None:
    for base, kind in ((tiny_checkpoint, "embedding"), (tiny_mixed_checkpoint, "mixed")):
        with pytest.raises(ConfigError, match=rf"{base}: found decoder_input '{kind}' \(blocks of 4 bytes\), expected"):
            adapt(base=base)


def test_state_of_another_run_is_refused(adapt: Adapt, tiny_encoder_checkpoint: Path, tmp_path: Path) -> None:
    run = adapt(steps=2)
    assert not run.run(0)
    other, model = tmp_path / "other", load_checkpoint(tiny_encoder_checkpoint)
    next(model.global_transformer.parameters()).add_(1)
    save_checkpoint(other, model)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE}: found the state of a run that adapts another checkpoint"):
        adapt(base=other, steps=2).resume()
    with pytest.raises(ConfigError, match="found a run with rank=3, expected None as in the command"):
        adapt(rank=None, steps=2).resume()
    (run.out / RECIPE_FILE).write_text(json.dumps({"model": "tiny"}))
    with pytest.raises(ConfigError, match="found the run of another command, expected one of `fastblt adapt`"):
        adapt(steps=2).resume()


def test_missing_memory_is_named_before_anything_is_read(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 1_000_000)
    monkeypatch.setattr("fastblt.models.adapting.loop.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(MemoryTooSmallError, match=r"^cpu: found 0.0 GB of memory, expected .* GB are missing; activ"):
        adapt(batch=4096)
