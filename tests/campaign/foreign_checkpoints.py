"""Writes one small model with random weights in every layout of checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.models.formats.convert import convert
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.registry import layout_named
from fastblt.models.presets import preset
from fastblt.models.training.loop import initialize

#: Folders that `write` makes.
FOLDERS = ("own", "shards", "transformers", "release", "hub")


def write(folder: Path) -> None:
    """Write the model in every layout, each in a folder of its own."""
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Blt(_config())
        initialize(model)
    model.eval().requires_grad_(False)
    save_checkpoint(folder / "own", model)
    convert(open_checkpoint(folder / "own"), folder / "transformers", "transformers")
    _write_shards(folder / "shards", model)
    main, entropy = _meta_tensors(model)
    params = _params(model.config)
    for path, tensors in ((folder / "release", main), (folder / "release" / "entropy_model", entropy)):
        path.mkdir()
        _write_json(path / "params.json", params)
        torch.save({"model": tensors, "optim": {"step": 3}}, path / "consolidated.pth")
    hub, args = folder / "hub", params["entropy_model"]
    for path, tensors, content in ((hub, main, params["model"]), (hub / "entropy_model", entropy, args)):
        path.mkdir()
        _write_json(path / "config.json", {"args": content})
        save_file(tensors, path / "model.safetensors")
    _write_json(hub / "train_args.json", {"data": params["data"]})


def _config() -> BltConfig:
    """Return a tiny BLT whose widths Meta's and transformers' configurations can express."""
    tiny = preset("tiny")
    assert tiny.patcher is not None
    return dataclasses.replace(
        tiny,
        name="model",
        patcher=dataclasses.replace(tiny.patcher, ffn_dim=256, window=512),
        encoder=dataclasses.replace(tiny.encoder, ffn_dim=88),
        decoder=dataclasses.replace(tiny.decoder, ffn_dim=88),
        global_transformer=dataclasses.replace(tiny.global_transformer, ffn_dim=176),
        hash=dataclasses.replace(tiny.hash, sizes=(3, 4, 5), functions=2),
        decoder_input="encoder",
        block_size=0,
        cross_attn_k=2,
    )


def _write_shards(folder: Path, model: Blt) -> None:
    folder.mkdir()
    model.config.save(folder / "config.json")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index.update(dict.fromkeys(part, file))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})


def _meta_tensors(model: Blt) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the model and of its entropy model, under Meta's names."""
    found: dict[str, Tensor] = {}
    for name, pieces in layout_named("meta-release").pieces(model.config).items():
        parts = model.state_dict()[name].chunk(len(pieces))
        found.update({piece: part.clone() for piece, part in zip(pieces, parts, strict=True)})
    entropy = {name.removeprefix("patcher."): tensor for name, tensor in found.items() if name.startswith("patcher.")}
    return {name: tensor for name, tensor in found.items() if not name.startswith("patcher.")}, entropy


def _params(config: BltConfig) -> dict[str, Any]:
    """Return what Meta's training code writes into ``params.json``."""
    assert config.patcher is not None
    args: dict[str, Any] = {
        "vocab_size": 260,
        "cross_attn_k": config.cross_attn_k,
        "cross_attn_nheads": config.encoder.heads,
        "cross_attn_all_layers_decoder": True,
        "cross_attn_all_layers_encoder": False,
        "downsampling_by_pooling": "max",
        "local_attention_window_len": config.decoder.window,
        "encoder_hash_byte_group_size": list(config.hash.sizes),
        "encoder_hash_byte_group_vocab": config.hash.rows,
        "encoder_hash_byte_group_nb_functions": config.hash.functions,
        "rope_theta": 500000.0,
        "norm_eps": 1e-5,
        "multiple_of": 8,
        "patching_mode": "entropy",
    }
    parts = {"local_encoder": config.encoder, "global": config.global_transformer, "local_decoder": config.decoder}
    for part, stack in parts.items():
        args.update({f"dim_{part}": stack.dim, f"n_layers_{part}": stack.layers, f"n_heads_{part}": stack.heads})
    rule, patcher = config.patching, config.patcher
    return {
        "model": args,
        "entropy_model": {"dim": patcher.dim, "n_layers": patcher.layers, "n_heads": patcher.heads, "vocab_size": 260},
        "data": {
            "patcher_args": {
                "threshold": rule.threshold,
                "patching_mode": "entropy",
                "max_patch_length": rule.max_patch_length,
                "monotonicity": False,
            }
        },
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
