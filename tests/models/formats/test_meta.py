"""Meta's layouts, written here from the same weights as a checkpoint of ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.formats.checkpoint import HASH_TABLE, expected_shapes
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.registry import layout_named
from fastblt.models.presets import preset

#: Part of one of Meta's names to what transformers' converter makes of it.
CONVERTER = {
    ".attention.": ".self_attn.", ".feed_forward.": ".mlp.", ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.", ".tok_embeddings.": ".embed_tokens.", ".output.": ".lm_head.",
    ".cross_attn_norm_q.": ".q_norm.", ".cross_attn_norm_kv.": ".k_norm.", ".wq.": ".q_proj.", ".wk.": ".k_proj.",
    ".wv.": ".v_proj.", ".wo.": ".o_proj.", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj.",
}  # fmt: skip

Tensors = dict[str, Tensor]
WriteMeta = Callable[..., Path]


@pytest.fixture
def config(tiny_encoder_config: BltConfig) -> BltConfig:
    """Feed-forward widths as Meta computes them: 64 and 96 of the tiny models become multiples of 8."""

    def width(dim: int) -> int:
        return -(-int(8 * dim / 3) // 8) * 8

    tiny = tiny_encoder_config
    assert tiny.patcher is not None
    stacks = {
        "encoder": dataclasses.replace(tiny.encoder, ffn_dim=width(32)),
        "decoder": dataclasses.replace(tiny.decoder, ffn_dim=width(32)),
        "global_transformer": dataclasses.replace(tiny.global_transformer, ffn_dim=width(64)),
        # A release folder's entropy model has fixed settings: window 512, multiples of 256.
        "patcher": dataclasses.replace(tiny.patcher, ffn_dim=256, window=512),
    }
    hashes = dataclasses.replace(tiny.hash, sizes=(3, 4, 5), functions=2)
    return dataclasses.replace(tiny, **stacks, hash=hashes, cross_attn_k=3, name="model")  # type: ignore[arg-type]


@pytest.fixture
def model(config: BltConfig, make_model: Callable[..., Blt]) -> Blt:
    return make_model(config)


def stored_tensors(model: Blt) -> tuple[Tensors, Tensors]:
    """The main model's and the entropy model's tensors, under Meta's names."""
    found: Tensors = {}
    for name, pieces in layout_named("meta-release").pieces(model.config).items():
        parts = model.state_dict()[name].chunk(len(pieces))
        found.update({piece: part.clone() for piece, part in zip(pieces, parts, strict=True)})
    entropy = {n.removeprefix("patcher."): t for n, t in found.items() if n.startswith("patcher.")}
    return {n: t for n, t in found.items() if not n.startswith("patcher.")}, entropy


def model_args(config: BltConfig) -> dict[str, Any]:
    """The arguments of `ByteLatentTransformer` that say the geometry, and some that say nothing."""
    args: dict[str, Any] = {
        "vocab_size": 260, "pm_size": 0, "weight_tying": False, "cross_attn_k": config.cross_attn_k,
        "cross_attn_nheads": config.encoder.heads, "cross_attn_all_layers_decoder": True,
        "cross_attn_all_layers_encoder": False, "cross_attn_window_encoder": None, "cross_attn_window_decoder": None,
        "downsampling_by_pooling": "max", "local_attention_window_len": config.decoder.window,
        "encoder_hash_byte_group_size": list(config.hash.sizes), "encoder_hash_byte_group_vocab": config.hash.rows,
        "encoder_hash_byte_group_nb_functions": config.hash.functions, "rope_theta": 500000.0, "norm_eps": 1e-5,
        "multiple_of": 8, "ffn_dim_multiplier": 1.0, "patching_mode": "entropy", "n_kv_heads": None,
        "n_kv_heads_global": None, "attn_impl": "xformers",
    }  # fmt: skip
    parts = {"local_encoder": config.encoder, "global": config.global_transformer, "local_decoder": config.decoder}
    for part, stack in parts.items():
        args.update({f"dim_{part}": stack.dim, f"n_layers_{part}": stack.layers, f"n_heads_{part}": stack.heads})
    return args


def entropy_args(config: BltConfig) -> dict[str, Any]:
    assert config.patcher is not None
    stack = config.patcher
    return {"dim": stack.dim, "n_layers": stack.layers, "n_heads": stack.heads, "vocab_size": 260, "max_seqlen": 8192}


def train_args(config: BltConfig) -> dict[str, Any]:
    rule = config.patching
    patcher = {"threshold": rule.threshold, "patching_mode": "entropy", "max_patch_length": rule.max_patch_length}
    return {
        "model": model_args(config),
        # Meta's code reads the first of these only; the others are fixed in it.
        "entropy_model": {**entropy_args(config), "rope_theta": 5e5, "sliding_window": 7, "multiple_of": 8},
        "data": {"patcher_args": {**patcher, "patch_size": 4.5, "monotonicity": False, "threshold_add": None}},
        "optim": {"lr": 1e-4},
    }


def write_release(folder: Path, params: dict[str, Any], tensors: Tensors, *, wrapped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    content = {"model": tensors, "optim": {"step": 3, "state": [torch.zeros(2)]}} if wrapped else tensors
    torch.save(content, folder / "consolidated.pth")


def write_hub(folder: Path, args: dict[str, Any], tensors: Tensors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"args": args}))
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture(params=["release", "release-bare", "hub-inside", "hub-beside"])
def folder(request: pytest.FixtureRequest, model: Blt, tmp_path: Path) -> Path:
    """The model in one of the layouts, with its entropy model where that layout has it."""
    main, entropy = stored_tensors(model)
    params = train_args(model.config)
    path = tmp_path / "model"
    if request.param.startswith("release"):
        write_release(path, params, main, wrapped=request.param == "release")
        write_release(tmp_path / "entropy_model", params, entropy)
        return path
    write_hub(path, model_args(model.config), main)
    (path / "train_args.json").write_text(json.dumps(params))
    if request.param == "hub-inside":
        write_release(path / "entropy_model", params, entropy)
    else:
        args = {**entropy_args(model.config), "sliding_window": 512, "rope_theta": 10000.0, "norm_eps": 1e-5}
        write_hub(tmp_path / "blt-entropy", args, entropy)
    return path


def test_layout_is_recognized_and_the_model_is_the_same(folder: Path, model: Blt) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout.name == ("meta-release" if (folder / "params.json").exists() else "meta-hub")
    assert checkpoint.config == dataclasses.replace(model.config, document_masks=True)
    loaded = load_checkpoint(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.tensor([[1, *range(40, 100)]])
    assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_gathered_rows_are_those_of_the_joined_hash_tables(folder: Path, model: Blt) -> None:
    table = model.state_dict()[HASH_TABLE]
    rows = torch.randint(0, len(table), (5, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(open_checkpoint(folder).gather(HASH_TABLE, rows, torch.float32), table[rows])


def test_documents_are_not_masked_when_that_is_asked_for(folder: Path, model: Blt) -> None:
    assert open_checkpoint(folder, document_masks=False).config == model.config


def test_sizes_of_ngrams_may_be_a_string(folder: Path) -> None:
    edit(folder, lambda args: args.update(encoder_hash_byte_group_size="3,4, 5"))
    assert open_checkpoint(folder).config.hash.sizes == (3, 4, 5)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the model's arguments, in either layout."""
    name, key = ("params.json", "model") if (folder / "params.json").exists() else ("config.json", "args")
    data = json.loads((folder / name).read_text())
    change(data[key])
    (folder / name).write_text(json.dumps(data))


def test_7b_like_model_has_an_input_projection(
    config: BltConfig, make_model: Callable[..., Blt], tmp_path: Path
) -> None:
    seven = make_model(dataclasses.replace(config, cross_attn_k=4))
    main, entropy = stored_tensors(seven)
    assert main["global_transformer.token_embedding_projection.weight"].shape == (64, 128)
    write_release(tmp_path / "model", train_args(seven.config), main)
    write_release(tmp_path / "entropy_model", train_args(seven.config), entropy)
    ids = torch.tensor([[1, *range(40, 90)]])
    assert torch.equal(load_checkpoint(tmp_path / "model")(ids)[0], seven(ids)[0])


@pytest.mark.parametrize(
    ("mode", "rule"),
    [
        ({"patching_mode": "space"}, PatchingConfig(mode="space")),
        ({"patching_mode": "byte"}, PatchingConfig(max_patch_length=1, mode="static")),
        ({"patching_mode": "static", "patch_size": 6.0}, PatchingConfig(max_patch_length=6, mode="static")),
    ],
)
def test_patcher_that_needs_no_model_is_the_one_that_the_configuration_names(
    model: Blt, tmp_path: Path, mode: dict[str, Any], rule: PatchingConfig
) -> None:
    params = train_args(model.config)
    params["data"]["patcher_args"] = mode
    write_release(tmp_path / "model", params, stored_tensors(model)[0])
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.config.patcher is None
    assert checkpoint.config.patching == rule
    ids = torch.tensor([[1, *range(40, 90)]])
    assert load_checkpoint(tmp_path / "model")(ids)[0].isfinite().all()


def test_missing_entropy_model_is_told_with_the_places_that_were_searched(model: Blt, tmp_path: Path) -> None:
    write_release(tmp_path / "model", train_args(model.config), stored_tensors(model)[0])
    with pytest.raises(CheckpointError, match=r"model: found no entropy model .*\.\./entropy_model.* --patcher PATH"):
        open_checkpoint(tmp_path / "model")
    write_release(tmp_path / "elsewhere", train_args(model.config), stored_tensors(model)[1])
    found = load_checkpoint_with(tmp_path / "model", tmp_path / "elsewhere")
    assert torch.equal(found.state_dict()["patcher.output.weight"], model.state_dict()["patcher.output.weight"])


def test_patcher_may_be_a_model_that_has_an_entropy_model(folder: Path, model: Blt, tmp_path: Path) -> None:
    write_release(tmp_path / "alone" / "model", train_args(model.config), stored_tensors(model)[0])
    found = load_checkpoint_with(tmp_path / "alone" / "model", folder)
    assert torch.equal(found.state_dict()["patcher.output.weight"], model.state_dict()["patcher.output.weight"])
    alone = tmp_path / "alone" / "model"
    with pytest.raises(
        CheckpointError, match=r"model: found no tensor tok_embeddings\.weight, expected an entropy mod"
    ):
        open_checkpoint(alone, patcher=alone)


def test_error_names_the_entropy_models_file_when_its_geometry_cannot_be(model: Blt, tmp_path: Path) -> None:
    main, entropy = stored_tensors(model)
    params = train_args(model.config)
    write_release(tmp_path / "model", params, main)
    params["entropy_model"]["n_heads"] = 5
    write_release(tmp_path / "entropy_model", params, entropy)
    with pytest.raises(ValueError, match=r"entropy_model/params\.json: entropy_model: config field 'patcher\.heads'"):
        open_checkpoint(tmp_path / "model")


def test_tensor_that_model_and_entropy_model_both_have_is_refused(model: Blt, tmp_path: Path) -> None:
    main, entropy = stored_tensors(model)
    write_release(tmp_path / "model", train_args(model.config), {**main, "patcher.norm.weight": torch.zeros(3)})
    write_release(tmp_path / "entropy_model", train_args(model.config), entropy)
    with pytest.raises(CheckpointError, match=r"found a second patcher\.norm\.weight, expected one"):
        open_checkpoint(tmp_path / "model")


def load_checkpoint_with(folder: Path, patcher: Path) -> Blt:
    from fastblt.models.checkpoint import load_model

    return load_model(open_checkpoint(folder, patcher=patcher))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 1}, "n_kv_heads: found 1, expected null or 2"),
        ({"cross_attn_window_encoder": 512}, "cross_attn_window_encoder: found 512, expected null"),
        ({"cross_attn_all_layers_decoder": False}, "cross_attn_all_layers_decoder: found false, expected true"),
        ({"vocab_size": 259}, "vocab_size: found 259, expected 260"),
        ({"dim_global": "wide"}, 'dim_global: found "wide", expected an integer'),
        ({"n_heads_global": 0}, "'global_transformer.heads': found 0, expected a positive integer"),
        ({"rope_theta": None}, "rope_theta: found null, expected a number"),
        ({"multiple_of": 0}, "multiple_of: found 0, expected a positive integer"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier: found Infinity, expected a finite number"),
        (
            {"encoder_hash_byte_group_size": "3;4"},
            'encoder_hash_byte_group_size: found "3;4", expected comma-separated integers',
        ),
    ],
)
def test_error_names_file_and_field_when_arguments_are_not_supported(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    edit(folder, lambda args: args.update(change))
    with pytest.raises(ValueError, match=r"(params|config)\.json: (model|args): ") as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("field", ["monotonicity", "threshold_add"])
def test_error_names_the_field_when_the_patch_rule_is_another(model: Blt, tmp_path: Path, field: str) -> None:
    params = train_args(model.config)
    params["data"]["patcher_args"][field] = True
    write_release(tmp_path / "model", params, stored_tensors(model)[0])
    write_release(tmp_path / "entropy_model", params, stored_tensors(model)[1])
    with pytest.raises(ValueError, match=f"patcher_args: {field}: found true, expected"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(("name", "main", "theirs"), [("blt-1b", 386, 510), ("blt-7b", 405, 529)])
def test_published_geometries_have_the_published_numbers_of_tensors(name: str, main: int, theirs: int) -> None:
    config = preset(name)
    meta = [piece for pieces in layout_named("meta-hub").pieces(config).values() for piece in pieces]
    assert sum(piece.startswith("patcher.") for piece in meta) == 129
    assert sum(not piece.startswith("patcher.") for piece in meta) == main
    assert len({piece for pieces in layout_named("transformers").pieces(config).values() for piece in pieces}) == theirs
    shapes = expected_shapes(config)
    assert set(shapes) == set(layout_named("meta-hub").pieces(config))


@pytest.mark.parametrize("name", ["blt-1b", "blt-7b"])
def test_names_become_those_of_transformers_by_its_converters_table(name: str) -> None:
    """Elsewhere in this file the tensors are written under the names that are read; here they are told apart."""
    config = preset(name)
    theirs = layout_named("transformers").pieces(config)
    for ours, pieces in layout_named("meta-hub").pieces(config).items():
        if ours == "encoder.hash_embeddings.weight":
            assert pieces == tuple(f"encoder_hash_tok_embedding.{table}.weight" for table in range(6))
        else:
            assert tuple(map(converted, pieces)) == theirs[ours]


def converted(name: str) -> str:
    """What transformers' converter calls one of Meta's tensors."""
    for old, new in CONVERTER.items():
        name = name.replace(old, new)
    return "lm_head.weight" if name == "local_decoder.lm_head.weight" else f"model.{name}"
