"""Tiny models of transformers' ``BltForCausalLM`` with random weights, saved as it saves them and loaded by us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.tokens import BOS_ID

if TYPE_CHECKING:
    from transformers import BltForCausalLM

#: Tokens of the sequence that the threshold is chosen on; longer than every window.
LENGTH = 200


@dataclass(frozen=True)
class Structure:
    """Geometry of a model; the defaults are the released 1B's in small: k * local width = global width."""

    cross_attn_k: int = 2
    local_dim: int = 32
    local_heads: int = 4
    global_dim: int = 64
    global_heads: int = 2
    encoder_layers: int = 1
    hash_sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    hash_functions: int = 1
    local_window: int | None = 48
    patcher_window: int | None = 40
    constants: tuple[dict[str, Any], ...] = ({}, {}, {}, {})
    """Further fields of patcher, encoder, global transformer and decoder."""
    other: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers' main configuration."""


def constants(rope_theta: float, rms_norm_eps: float) -> dict[str, Any]:
    """Constants of one part."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": rope_theta}, "rms_norm_eps": rms_norm_eps}


STRUCTURES = {
    "1b-like": Structure(),
    "7b-like-with-projection": Structure(cross_attn_k=4),
    "three-hash-functions": Structure(hash_sizes=(2, 5), hash_functions=3),
    "two-encoder-layers": Structure(encoder_layers=2, local_heads=2, global_heads=1),
    "small-windows": Structure(local_window=12, patcher_window=20),
    "constants-of-each-part": Structure(
        constants=(constants(5e2, 1e-2), constants(1e3, 2e-2), constants(2e3, 3e-2), constants(4e3, 4e-2))
    ),
    "no-windows": Structure(cross_attn_k=1, local_window=None, patcher_window=None),
}
#: transformers' default windows; too long for sequences that are quick.
DEFAULT_WINDOWS = {"default-windows": Structure(local_window=512, patcher_window=512)}


@dataclass(frozen=True, eq=False)
class Peer:
    """The same weights in transformers and here."""

    theirs: BltForCausalLM
    folder: Path
    """What transformers saved."""
    ours: Blt
    ids: Tensor
    """int64 [1, LENGTH]: BOS and random bytes; about a quarter of them close a patch."""


@dataclass(frozen=True)
class Trace:
    """What transformers computes on the way to its logits."""

    entropies: Tensor
    patch_lengths: Tensor
    states: Tensor
    patch_embeddings: Tensor
    latents: Tensor
    logits: Tensor


def build(structure: Structure, seed: int) -> BltForCausalLM:
    """A model whose patcher is as sure as a trained one: its entropies spread over some nats."""
    from transformers import BltConfig, BltForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # no advice
    logging.disable_progress_bar()
    local = {
        "hidden_size": structure.local_dim,
        "num_attention_heads": structure.local_heads,
        "intermediate_size": 3 * structure.local_dim,
        "cross_attn_k": structure.cross_attn_k,
        "hidden_size_global": structure.global_dim,
    }
    patcher, encoder, latents, decoder = structure.constants
    config = BltConfig(
        cross_attn_k=structure.cross_attn_k,
        local_attention_window_len=structure.local_window,
        encoder_hash_byte_group_size=list(structure.hash_sizes),
        encoder_hash_byte_group_vocab=101,
        encoder_hash_byte_group_nb_functions=structure.hash_functions,
        patcher_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "sliding_window": structure.patcher_window,
            **patcher,
        },
        encoder_config={**local, "num_hidden_layers": structure.encoder_layers, **encoder},
        global_config={
            "hidden_size": structure.global_dim,
            "num_hidden_layers": 2,
            "num_attention_heads": structure.global_heads,
            "intermediate_size": 2 * structure.global_dim,
            **latents,
        },
        decoder_config={**local, "num_hidden_layers": 2, **decoder},
        **structure.other,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BltForCausalLM(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.8, 1.2)  # norms, so that a forgotten one shows
    if model.model.patcher is not None:
        model.model.patcher.lm_head.weight.mul_(3.0)
    return model


def between(entropies: Tensor, quantile: float) -> float:
    """A threshold halfway between two neighbors of the sorted entropies, so that rounding moves no boundary."""
    ordered = entropies.flatten().sort().values
    at = int(quantile * len(ordered))
    return float((ordered[at - 1] + ordered[at]) / 2)


def random_ids(length: int, seed: int) -> Tensor:
    """BOS and random bytes, int64 [1, length]."""
    return torch.tensor([[BOS_ID, *np.random.default_rng(seed).integers(4, 260, length - 1).tolist()]])


@pytest.fixture(scope="session")
def make_ids() -> Callable[[int, int], Tensor]:
    """``make_ids(length, seed)``: see `random_ids`."""
    return random_ids


@pytest.fixture(scope="session")
def make_peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Peer]:
    """``make_peer(seed=0, structure="1b-like", dtype=torch.float32, **fields of transformers' configuration)``."""

    def make(seed: int = 0, structure: str = "1b-like", dtype: torch.dtype = torch.float32, **other: object) -> Peer:
        shape = (STRUCTURES | DEFAULT_WINDOWS)[structure]
        theirs = build(Structure(**{**shape.__dict__, "other": other}), seed)
        ids = random_ids(LENGTH, seed)
        if theirs.model.patcher is not None:
            theirs.config.patching_threshold = between(theirs.model.patcher(ids)[0], 0.75)
        folder = tmp_path_factory.mktemp("transformers") / structure
        theirs.to(dtype).save_pretrained(folder)
        return Peer(theirs, folder, load_checkpoint(folder), ids)

    return make


@pytest.fixture(scope="session")
def peer_of(make_peer: Callable[..., Peer]) -> Callable[[str], Peer]:
    """``peer_of(structure)``, made once."""
    return cache(lambda structure: make_peer(structure=structure))


@pytest.fixture(scope="session")
def tiny_peer(peer_of: Callable[[str], Peer]) -> Peer:
    """The first structure."""
    return peer_of("1b-like")


@pytest.fixture(scope="session", params=STRUCTURES)
def peer(request: pytest.FixtureRequest, peer_of: Callable[[str], Peer]) -> Peer:
    """Each structure."""
    return peer_of(request.param)


@pytest.fixture(scope="session")
def bundle_of(peer_of: Callable[[str], Peer], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``bundle_of(structure)``: exported to fp32 ONNX from the folder that transformers saved, once."""

    def export(structure: str) -> Path:
        from fastblt.export.bundle_writer import export_bundle

        bundle = tmp_path_factory.mktemp("bundles") / structure
        export_bundle(peer_of(structure).folder, bundle, verify=False)
        return bundle

    return cache(export)


@pytest.fixture(scope="session")
def trace() -> Callable[..., Trace]:
    """``trace(theirs, ids, **arguments)``: run transformers' model and look into it."""

    def run(theirs: BltForCausalLM, ids: Tensor, **arguments: object) -> Trace:
        seen: dict[str, Any] = {}
        parts = {name: getattr(theirs.model, name) for name in ("patcher", "local_encoder", "global_transformer")}
        hooks = [
            part.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
            for name, part in parts.items()
        ]
        try:
            logits = theirs(ids, use_cache=False, **arguments).logits
        finally:
            for hook in hooks:
                hook.remove()
        entropies, lengths, _ = seen["patcher"]
        states, pooled = seen["local_encoder"]
        embeddings = pooled.reshape(1, lengths.shape[1], -1)
        return Trace(entropies, lengths, states, embeddings, seen["global_transformer"], logits)

    return run
