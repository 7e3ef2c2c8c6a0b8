"""What a user is told about a checkpoint that cannot be used: one line, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_model, save_checkpoint
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.formats.convert import convert
from fastblt.models.formats.open import open_checkpoint

WEIGHTS = "model.safetensors"
Q_PROJ = "model.global_transformer.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def own(tiny_encoder_model: Blt, tmp_path: Path) -> Path:
    """A checkpoint of ours."""
    save_checkpoint(tmp_path / "own", tiny_encoder_model)
    return tmp_path / "own"


@pytest.fixture
def theirs(own: Path, tmp_path: Path) -> Path:
    """The same in transformers' layout."""
    convert(open_checkpoint(own), tmp_path / "theirs", "transformers")
    return tmp_path / "theirs"


def refused(tmp_path: Path, source: Path | str, *options: str) -> str:
    """The one line that `fastblt export` says; nothing is written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    result = CliRunner().invoke(app, ["export", str(source), str(tmp_path / "bundle"), *options])
    assert result.exit_code == 1, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    # What was found is told before; the error is one line.
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.stderr.rstrip().endswith(lines[0])
    return lines[0]


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_part(folder: Path, part: str, **fields: Any) -> None:
    data = json.loads((folder / "config.json").read_text())
    edit_config(folder, **{part: {**data[part], **fields}})


def edit_tensors(folder: Path, **tensors: Any) -> None:
    found = load_file(folder / WEIGHTS)
    for key, tensor in tensors.items():
        name = key.replace("__", ".")
        found.pop(name, None)
        if tensor is not None:
            found[name] = tensor
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})


def test_every_faulty_tensor_is_listed_in_one_error(theirs: Path, tmp_path: Path) -> None:
    edit_tensors(
        theirs,
        lm_head__weight=None,
        model__color=torch.zeros(2, 3),
        **{Q_PROJ.replace(".", "__"): torch.zeros(64, 32)},
        **{"model.patcher.norm.weight".replace(".", "__"): torch.zeros(32, dtype=torch.float64)},
    )
    error = refused(tmp_path, theirs)
    assert "theirs: tensors do not fit the configuration: " in error
    assert "missing lm_head.weight [260, 32]" in error
    assert "unknown model.color [2, 3]" in error
    assert f"{Q_PROJ}: found shape [64, 32], expected [64, 64]" in error
    assert "model.patcher.norm.weight: found type F64, expected one of F32, F16, BF16" in error


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named_with_their_file(theirs: Path, tmp_path: Path, value: float) -> None:
    tensor = load_file(theirs / WEIGHTS)[Q_PROJ]
    tensor[3, 5] = value
    edit_tensors(theirs, **{Q_PROJ.replace(".", "__"): tensor})
    assert f"{theirs / WEIGHTS}: {Q_PROJ}: found NaN or infinite values" in refused(tmp_path, theirs)


@pytest.mark.parametrize("keep", [0, 7, 2000, -1])
def test_truncated_weights_are_named(theirs: Path, tmp_path: Path, keep: int) -> None:
    path = theirs / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: not a readable safetensors file" in refused(tmp_path, theirs)


def test_missing_weights_are_named(theirs: Path, tmp_path: Path) -> None:
    (theirs / WEIGHTS).unlink()
    assert f"{theirs / WEIGHTS}: no such file" in refused(tmp_path, theirs)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "model-00001-of-00002.safetensors: no such file"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "found shard '../secret.safetensors', expected a plain file"),
        ({"weight_map": {"a": 3}}, "found shard 3, expected a plain file name"),
        ({"weight_map": {"a": ".."}}, "found shard '..', expected a plain file name"),
        ({"weight_map": {}}, "found no shards"),
        ({"map": {}}, "not an index of shards"),
        ([], "not an index of shards"),
    ],
)
def test_index_of_shards_that_is_wrong_is_one_error(theirs: Path, tmp_path: Path, index: Any, message: str) -> None:
    (theirs / WEIGHTS).unlink()
    (theirs / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert message in refused(tmp_path, theirs)


def test_index_is_refused_when_tensors_lie_elsewhere_or_twice(theirs: Path, tmp_path: Path) -> None:
    tensors = load_file(theirs / WEIGHTS)
    (theirs / WEIGHTS).rename(theirs / "a.safetensors")
    save_file({Q_PROJ: tensors[Q_PROJ] + 1}, theirs / "b.safetensors")
    index = theirs / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), "x": "b.safetensors"}}))
    error = refused(tmp_path, theirs)
    assert f"{theirs / 'b.safetensors'}: found {Q_PROJ} here and in {theirs / 'a.safetensors'}, expected one" in error
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), "x": "a.safetensors"}}))
    assert f"{index}: found tensors that are not in the shards that it lists: x in a.safetensors" in refused(
        tmp_path, theirs
    )


def test_one_file_is_read_as_transformers_does_when_there_is_an_index_too(theirs: Path) -> None:
    tensors = load_file(theirs / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, theirs / "old.safetensors")
    (theirs / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "old.safetensors")}))
    assert torch.equal(open_checkpoint(theirs).store.read(Q_PROJ), tensors[Q_PROJ])


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("content", ["code", "garbage", "cut", "empty", "number", "sparse", "unnamed"])
def test_pth_file_that_is_no_checkpoint_is_refused_and_runs_nothing(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({"model": {}, "data": {"patcher_args": {"patching_mode": "byte"}}}))
    path = folder / "consolidated.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    if content == "code":
        torch.save({"model": {"a": Trap(tmp_path / "pwned")}}, path)
    elif content == "garbage":
        path.write_bytes(b"\x80\x04 not a checkpoint" * 50)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-700])
    elif content == "empty":
        path.write_bytes(b"")
    else:
        others = {"number": 7, "sparse": {"a": torch.eye(3).to_sparse()}, "unnamed": {3: torch.zeros(3)}}
        torch.save(others[content], path)
    expected = {
        "number": "found int, expected tensors by name",
        "sparse": "found dict, expected tensors by name under 'model', all dense",
        "unnamed": "found dict, expected tensors by name",
    }
    assert f"{path}: {expected.get(content, 'not a readable .pth file of tensors')}" in refused(tmp_path, folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 259}, "vocab_size: found 259, expected 260"),
        ({"cross_attn_k": "two"}, 'cross_attn_k: found "two", expected an integer'),
        ({"patching_mode": "bpe"}, 'patching_mode: found "bpe", expected entropy, space, static or byte'),
        ({"monotonicity": True}, "monotonicity: found true, expected false or null"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: found true, expected false or null"),
        ({"encoder_config": []}, "encoder_config: found [], expected an object"),
        ({"patching_threshold": -1}, "patching.threshold"),
        ({"patching_threshold": float("nan")}, "patching_threshold: found NaN, expected a finite number"),
        ({"encoder_hash_byte_group_size": [3.5]}, "hash.sizes"),
        (
            {"patching_mode": "static", "patch_size": float("inf")},
            "patch_size: found Infinity, expected a finite number",
        ),
    ],
)
def test_error_names_the_field_of_a_transformers_configuration(
    theirs: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    edit_config(theirs, **fields)
    error = refused(tmp_path, theirs)
    assert f"{theirs / 'config.json'}: " in error
    assert message in error


def test_architectures_that_are_no_list_are_one_error(theirs: Path, tmp_path: Path) -> None:
    edit_config(theirs, model_type="gpt", architectures=5)
    assert "config.json: config field" in refused(tmp_path, theirs)


@pytest.mark.parametrize("field", ["rope_theta", "norm_eps"])
def test_constant_that_is_not_finite_is_named(own: Path, tmp_path: Path, field: str) -> None:
    edit_part(own, "decoder", **{field: float("inf")})
    assert f"'decoder.{field}': found inf, expected a positive, finite number" in refused(tmp_path, own)


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("global_config", {"num_key_value_heads": 1}, "num_key_value_heads: found 1, expected null or"),
        ("decoder_config", {"rope_parameters": {"rope_type": "llama3"}}, 'rope_type: found "llama3", expected'),
        ("decoder_config", {"rope_scaling": {"type": "linear"}}, 'type: found "linear", expected "default"'),
        ("decoder_config", {"cross_attn_all_layers": False}, "cross_attn_all_layers: found false, expected true"),
        ("encoder_config", {"cross_attn_k": 7}, "cross_attn_k: found 7, expected 3"),
        (
            "encoder_config",
            {"num_attention_heads": 0, "num_key_value_heads": None},
            "num_attention_heads: found 0, expected a positive integer",
        ),
        ("patcher_config", {"hidden_act": "gelu"}, 'hidden_act: found "gelu", expected "silu"'),
        ("patcher_config", {"vocab_size": 300}, "vocab_size: found 300, expected 260"),
    ],
)
def test_error_names_the_part_whose_field_is_not_supported(
    theirs: Path, tmp_path: Path, part: str, fields: dict[str, Any], message: str
) -> None:
    edit_part(theirs, part, **fields)
    error = refused(tmp_path, theirs)
    assert f"config.json: {part}: " in error
    assert message in error


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[" * 10**5, "not JSON"), ("[]", "found list, expected an object")]
)
def test_configuration_that_is_not_json_is_named(theirs: Path, tmp_path: Path, text: str, message: str) -> None:
    (theirs / "config.json").write_text(text)
    assert f"{theirs / 'config.json'}: {message}" in refused(tmp_path, theirs)


def test_what_is_no_checkpoint_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert "nowhere: found no such folder, expected a checkpoint" in refused(tmp_path, tmp_path / "nowhere")
    assert "../nowhere: found no such folder, expected a checkpoint" in refused(tmp_path, "../nowhere")
    assert "empty: found a folder with nothing, expected a checkpoint" in refused(tmp_path, tmp_path / "empty")
    assert "file: found a file, expected a checkpoint" in refused(tmp_path, tmp_path / "file")
    assert "found a bundle (manifest.json), expected the checkpoint" in refused(tmp_path, tiny_bundle)


def test_hub_id_without_a_network_says_how_to_pass_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    error = refused(tmp_path, "hf://nobody/no-such-model-31337")
    assert error.startswith("error: hf://nobody/no-such-model-31337: the Hugging Face hub cannot provide it")
    assert "hf download nobody/no-such-model-31337)" in error
    pinned = refused(tmp_path, "hf://nobody/no-such-model-31337", "--revision", "v1")
    assert "hf download nobody/no-such-model-31337 --revision v1)" in pinned
    assert "pass the folder" in error


def without_patcher(folder: Path) -> None:
    names = [name for name in load_file(folder / WEIGHTS) if "patcher." in name]
    edit_tensors(folder, **{name.replace(".", "__"): None for name in names})


@pytest.mark.parametrize("layout", ["own", "theirs"])
def test_missing_patcher_is_told_and_another_can_be_passed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    layout: str,
    tiny_encoder_config: BltConfig,
    make_model: Callable[..., Blt],
) -> None:
    folder: Path = request.getfixturevalue(layout)
    other = make_model(tiny_encoder_config, 1)
    save_checkpoint(tmp_path / "other", other)
    convert(open_checkpoint(tmp_path / "other"), tmp_path / "other-theirs", "transformers")
    without_patcher(folder)
    error = refused(tmp_path, folder)
    assert "found no entropy model" in error
    assert "--patcher PATH" in error
    expected = other.state_dict()["patcher.layers.0.wqkv.weight"]
    for source in ("other", "other-theirs"):
        model = load_model(open_checkpoint(folder, patcher=tmp_path / source))
        assert torch.equal(model.state_dict()["patcher.layers.0.wqkv.weight"], expected)


def test_patcher_that_is_passed_replaces_the_checkpoints_own(
    theirs: Path, tiny_encoder_config: BltConfig, make_model: Callable[..., Blt], tmp_path: Path
) -> None:
    other = make_model(tiny_encoder_config, 1)
    save_checkpoint(tmp_path / "other", other)
    result = CliRunner().invoke(
        app, ["export", str(theirs), str(tmp_path / "bundle"), "--patcher", str(tmp_path / "other")]
    )
    assert result.exit_code == 0, result.stderr
    model = load_model(open_checkpoint(theirs, patcher=tmp_path / "other"))
    ids = torch.tensor([[1, *range(50, 80)]])
    assert model.patcher is not None
    assert other.patcher is not None
    assert torch.equal(model.patcher(ids), other.patcher(ids))


def test_folder_without_an_entropy_model_is_no_patcher(
    own: Path, tiny_encoder_config: BltConfig, make_model: Callable[..., Blt], tmp_path: Path
) -> None:
    rule = PatchingConfig(mode="space")
    space = make_model(dataclasses.replace(tiny_encoder_config, patcher=None, patching=rule))
    save_checkpoint(tmp_path / "space", space)
    assert "space: found a checkpoint without an entropy model" in refused(
        tmp_path, own, "--patcher", str(tmp_path / "space")
    )
    patched = open_checkpoint(tmp_path / "space", patcher=own).config
    assert patched.patching.mode == "entropy"
    assert patched.patcher == tiny_encoder_config.patcher


def test_static_rule_leaves_no_limit_when_a_patcher_is_passed(own: Path, theirs: Path) -> None:
    """A folder without an entropy model makes every byte a patch; its threshold is for the one that is passed."""
    without_patcher(theirs)
    edit_config(theirs, patch_in_forward=False, patching_threshold=2.5)
    assert open_checkpoint(theirs).config.patching == PatchingConfig(2.5, 1, "static")
    assert open_checkpoint(theirs, patcher=own).config.patching == PatchingConfig(2.5, None, "entropy")


def test_convert_refuses_what_transformers_has_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(tiny_checkpoint), str(tmp_path / "out"), "--to", "transformers"])
    assert result.exit_code == 1
    assert "error: tiny: transformers' BLT has no decoder_input 'embedding', expected 'encoder'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_convert_replaces_nothing(own: Path, theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for folder in (theirs, tmp_path / "mine"):
        result = CliRunner().invoke(app, ["convert", str(own), str(folder), "--to", "transformers"])
        assert result.exit_code == 1
        assert f"{folder}: found something there, expected a new name or an empty folder" in result.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("exists", [True, False])
def test_convert_keeps_a_link_and_leaves_nothing_beside_it(own: Path, tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    convert(open_checkpoint(own), tmp_path / "link", "transformers")
    assert open_checkpoint(tmp_path / "disk").layout.name == "transformers"
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link", "own"]


def test_convert_leaves_nothing_when_a_weight_is_not_finite(own: Path, tmp_path: Path) -> None:
    edit_tensors(own, decoder__output__weight=torch.full((260, 32), torch.nan))
    result = CliRunner().invoke(app, ["convert", str(own), str(tmp_path / "out"), "--to", "transformers"])
    assert result.exit_code == 1
    assert "decoder.output.weight: found NaN or infinite values" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
