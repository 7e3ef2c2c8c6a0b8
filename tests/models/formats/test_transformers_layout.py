"""Folders of transformers' layout: written, converted there and back, in pieces, and as older versions wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.formats.open import open_checkpoint

transformers = pytest.importorskip("transformers", minversion="5.23")

WEIGHTS = "model.safetensors"
HASH_TABLE = "model.encoder_hash_tok_embedding.weight"


def convert(source: Path, target: Path, to: str) -> Path:
    result = CliRunner().invoke(app, ["convert", str(source), str(target), "--to", to])
    assert result.exit_code == 0, result.output
    return target


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


def logits(folder: Path, ids: Tensor, **arguments: object) -> Tensor:
    model = transformers.BltForCausalLM.from_pretrained(folder, **arguments).eval()
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.fixture(
    scope="module",
    params=["fp32", "fp16", "bf16", "bf16-with-fp32-table", "7b-like-bf16"],
)
def stored(request: pytest.FixtureRequest, make_peer: Callable[..., Any]) -> Any:
    """Weights of every type; the published convert script leaves the hash table in fp32."""
    kind: str = request.param
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(kind, torch.bfloat16)
    peer = make_peer(structure="7b-like-with-projection" if kind.startswith("7b") else "1b-like", dtype=dtype)
    if kind == "bf16-with-fp32-table":
        tensors = load_file(peer.folder / WEIGHTS)
        tensors[HASH_TABLE] = torch.randn(tensors[HASH_TABLE].shape, generator=torch.Generator().manual_seed(0))
        save_file(tensors, peer.folder / WEIGHTS, metadata={"format": "pt"})
    return peer


def test_conversion_there_and_back_restores_every_bit(stored: Any, tmp_path: Path) -> None:
    own = convert(stored.folder, tmp_path / "own", "fastblt")
    theirs = convert(own, tmp_path / "theirs", "transformers")
    again = convert(theirs, tmp_path / "again", "fastblt")
    assert_same_bits(load_file(stored.folder / WEIGHTS), load_file(theirs / WEIGHTS))
    assert_same_bits(load_file(own / WEIGHTS), load_file(again / WEIGHTS))
    config = open_checkpoint(stored.folder).config
    assert config == open_checkpoint(own).config == open_checkpoint(theirs).config == open_checkpoint(again).config
    # transformers sees no difference, in the type that the folder says.
    expected = logits(stored.folder, stored.ids)
    assert torch.equal(logits(theirs, stored.ids), expected)
    assert torch.equal(
        logits(theirs, stored.ids, dtype=torch.float32), logits(stored.folder, stored.ids, dtype=torch.float32)
    )


def test_stored_16_bits_give_the_logits_of_transformers_in_fp32(stored: Any) -> None:
    expected = logits(stored.folder, stored.ids, dtype=torch.float32)
    torch.testing.assert_close(load_checkpoint(stored.folder)(stored.ids)[0], expected, rtol=0, atol=1e-4)


def test_converted_folder_saves_again_as_transformers_would(tiny_peer: Any, tmp_path: Path) -> None:
    theirs = convert(tiny_peer.folder, tmp_path / "theirs", "transformers")
    transformers.BltForCausalLM.from_pretrained(theirs).save_pretrained(tmp_path / "saved")
    assert_same_bits(load_file(tiny_peer.folder / WEIGHTS), load_file(tmp_path / "saved" / WEIGHTS))
    assert open_checkpoint(tmp_path / "saved").config == open_checkpoint(tiny_peer.folder).config


def test_shards_are_read_as_one_file_is(tiny_peer: Any, tmp_path: Path) -> None:
    tiny_peer.theirs.save_pretrained(tmp_path / "1b-like", max_shard_size="60KB")
    assert len(list((tmp_path / "1b-like").glob("model-*.safetensors"))) > 3
    found, expected = load_checkpoint(tmp_path / "1b-like"), tiny_peer.ours
    assert_same_bits(found.state_dict(), expected.state_dict())


SUB_CONFIGS = ("patcher_config", "encoder_config", "global_config", "decoder_config")


def as_older_versions_wrote(data: dict[str, Any]) -> None:
    """``rope_theta`` and an empty ``rope_scaling`` in the parts, ``norm_eps``, null kv heads, fields of Meta's."""
    for name in SUB_CONFIGS:
        part = data[name]
        part["rope_theta"] = part.pop("rope_parameters")["rope_theta"]
        part["rope_scaling"] = {"rope_type": "default"}
        part["norm_eps"] = part.pop("rms_norm_eps")
        part["num_key_value_heads"] = None
        part["attn_impl"] = "sdpa"
    data |= {"attn_impl": "sdpa", "attn_bias_type": "causal", "pm_size": 0, "monotonicity": False}
    data |= {"patching_device": "cuda", "rope_scaling": None}


def without_rope(data: dict[str, Any]) -> None:
    for name in SUB_CONFIGS:
        del data[name]["rope_parameters"]


def without_windows(data: dict[str, Any]) -> None:
    del data["local_attention_window_len"], data["patcher_config"]["sliding_window"]
    data["encoder_config"].pop("sliding_window", None)


def with_null_heads(data: dict[str, Any]) -> None:
    for name in SUB_CONFIGS:
        data[name]["num_key_value_heads"] = None


def with_null_rope_scaling(data: dict[str, Any]) -> None:
    as_older_versions_wrote(data)
    for name in SUB_CONFIGS:
        data[name]["rope_scaling"] = None


@pytest.mark.parametrize(
    "change", [as_older_versions_wrote, without_rope, without_windows, with_null_heads, with_null_rope_scaling]
)
def test_older_configurations_mean_the_same_model(
    make_peer: Callable[..., Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    peer = make_peer(structure="default-windows")
    folder = tmp_path / peer.folder.name
    shutil.copytree(peer.folder, folder)
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))
    config = open_checkpoint(folder).config
    assert config.patcher is not None
    assert (config.encoder.window, config.decoder.window, config.patcher.window) == (512, 512, 512)
    assert config == peer.ours.config
    # transformers reads it alike.
    assert torch.equal(logits(folder, peer.ids), logits(peer.folder, peer.ids))


def test_older_name_of_epsilon_is_read(tiny_peer: Any, tmp_path: Path) -> None:
    """transformers ignores that name; its default is the value of all that is published."""
    folder = shutil.copytree(tiny_peer.folder, tmp_path / "older")
    data = json.loads((folder / "config.json").read_text())
    data["decoder_config"]["norm_eps"] = 0.02
    del data["decoder_config"]["rms_norm_eps"]
    (folder / "config.json").write_text(json.dumps(data))
    assert open_checkpoint(folder).config.decoder.norm_eps == 0.02


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_parts_of_different_types_are_joined_as_fp32(tiny_peer: Any, tmp_path: Path, kind: torch.dtype) -> None:
    folder = shutil.copytree(tiny_peer.folder, tmp_path / "mixed")
    tensors = load_file(folder / WEIGHTS)
    for part in "qk":
        name = f"model.local_decoder.layers.0.self_attn.{part}_proj.weight"
        tensors[name] = tensors[name].to(kind if part == "q" else torch.float32)
    save_file(tensors, folder / WEIGHTS)
    own = convert(folder, tmp_path / "own", "fastblt")
    found = load_file(own / WEIGHTS)["decoder.layers.0.wqkv.weight"]
    expected = [tensors[f"model.local_decoder.layers.0.self_attn.{part}_proj.weight"].float() for part in "qkv"]
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.cat(expected))
