import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fastblt.models.config import ConfigError, PatchingConfig
from fastblt.models.presets import preset
from fastblt.models.training import recipe
from fastblt.models.training.recipe import TrainConfig

SHIPPED = Path(recipe.__file__).parent / "recipes" / "blt-d-8m.json"


def write(folder: Path, **changes: Any) -> Path:
    data = {"model": "tiny", "budget_seconds": 10, "patcher_seconds": 1} | changes
    path = folder / "recipe.json"
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return path


def test_shipped_recipe_is_of_the_shipped_model() -> None:
    config = TrainConfig.load(SHIPPED)
    assert config.model_config == preset("blt-d-8m")
    assert config.patcher_seconds + config.budget_seconds >= 7200


def test_recipe_takes_defaults_and_given_values(tmp_path: Path) -> None:
    config = TrainConfig.load(write(tmp_path, seed=9, clip=2))
    expected = TrainConfig(model="tiny", budget_seconds=10.0, patcher_seconds=1.0, seed=9, clip=2.0)
    assert dataclasses.asdict(config) == dataclasses.asdict(expected)
    assert isinstance(config.clip, float)


@pytest.mark.parametrize(
    ("done", "weight"), [(0.0, 0.1), (0.2, 0.55), (0.4, 1.0), (0.5, 1.0), (0.5002, 0.75), (0.6, 0.5), (1.0, 0.5)]
)
def test_mask_weight_is_linear_between_its_points(tmp_path: Path, done: float, weight: float) -> None:
    points = [[0, 0.1], [0.4, 1], [0.5001, 1.0], [0.5003, 0.5]]
    config = TrainConfig.load(write(tmp_path, mask_weight=points))
    assert config.mask_weight == tuple(map(tuple, points))
    assert config.mask_weight_at(done) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"color": "red"}, "color"),
        ({"model": None}, "model"),
        ({"batch": 2.5}, "batch"),
        ({"clip": "1"}, "clip"),
        ({"mask_weight": 0.5}, "mask_weight"),
        ({"mask_weight": [0.5]}, "mask_weight[0]"),
        ({"mask_weight": [[0.0, "1"]]}, "mask_weight[0][1]"),
        ({"mask_weight": [[0.0, 1.0, 2.0]]}, "mask_weight[0]"),
        ({"mask_weight": [[0.0, 1e400]]}, "mask_weight"),
        ({"mask_weight": [[0, 1]] * 2000}, "mask_weight"),
        ({"budget_seconds": 1e400}, "budget_seconds"),
        ({"budget_seconds": 10**400}, "budget_seconds"),
        ({"eval_every": math.nan}, "eval_every"),
        ({"batch": 2**31}, "batch"),
        ({"batch": 2**20}, "batch"),
        ({"window": 2**40}, "window"),
        ({"long_window": True}, "long_window"),
        ({"blocks": 10**9}, "blocks"),
        ({"stale_segments": -1}, "stale_segments"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip": 1e300}, "clip"),
        ({"position_decay": 0}, "position_decay"),
        ({"position_decay": "1"}, "position_decay"),
        ({"model": {"name": "x"}}, "model.patcher"),
        ({"model": {**preset("tiny").to_dict(), "cross_attn_k": 0}}, "cross_attn_k"),
    ],
)
def test_error_names_file_and_field_when_field_is_bad(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"recipe\.json: config field '{re.escape(field)}': found .*, expected "):
        TrainConfig.load(write(tmp_path, **changes))


def test_error_names_file_when_it_is_missing_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        TrainConfig.load(tmp_path / "none.json")
    path = tmp_path / "recipe.json"
    path.write_text("model: tiny")
    with pytest.raises(ConfigError, match=r"recipe\.json: "):
        TrainConfig.load(path)


@pytest.mark.parametrize("part", [0, 0.25, 1])
def test_distilled_is_a_part(tmp_path: Path, part: float) -> None:
    assert TrainConfig.load(write(tmp_path, distilled=part)).distilled == part


@pytest.mark.parametrize("part", [-0.1, 1.01])
def test_distilled_is_refused_when_it_is_no_part(tmp_path: Path, part: float) -> None:
    with pytest.raises(ConfigError, match=rf"recipe\.json: .*distilled.*{part}.*a part, from 0 to 1"):
        TrainConfig.load(write(tmp_path, distilled=part))


def test_a_geometry_may_stand_in_place_of_a_name(tmp_path: Path) -> None:
    geometry = dataclasses.replace(preset("tiny"), name="ours", decoder_input="encoder", block_size=0)
    config = TrainConfig.load(write(tmp_path, model=geometry.to_dict()))
    assert config.model == config.model_config == geometry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_input": "mixed"}, "model.decoder_input.*mixed.*encoder or embedding"),
        ({"block_latent": "partial"}, "model.block_latent.*partial.*closed"),
        (
            {"patcher": None, "patching": PatchingConfig(mode="static", max_patch_length=4)},
            "patch_once.*the model has no patcher",
        ),
    ],
)
def test_models_that_recipes_do_not_train_are_refused(changes: dict[str, Any], message: str) -> None:
    model = dataclasses.replace(preset("tiny"), **changes)
    with pytest.raises(ConfigError, match=message):
        _ = TrainConfig(model, budget_seconds=1, patcher_seconds=1, patch_once=True).model_config
