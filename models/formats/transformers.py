"""Reads and writes folders of transformers' ``BltForCausalLM``: four sub-configurations, and safetensors.

Fields and their defaults are those of transformers 5.23; older folders (``rope_theta`` and ``norm_eps`` in the
sub-configurations, no windows) are read as they were meant: a missing window is 512. Two facts have no field there
and are stored under ``fastblt`` in config.json, which transformers ignores: the model's name and its document masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastblt.models.config import BltConfig, HashConfig, PatchingConfig, StackConfig
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.fields import Fields, model_name, naming, read_json
from fastblt.models.formats.layout import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from fastblt.models.formats.names import Pieces, Vocabulary, translate
from fastblt.models.tokens import BOS_ID, EOS_ID, VOCAB_SIZE

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint
    from fastblt.models.formats.separate_patcher import StoredPatcher

WINDOW = 512
THRESHOLD = 1.335442066192627

NAMES = Vocabulary(
    parts={
        "patcher": "model.patcher.",
        "encoder": "model.local_encoder.",
        "global_transformer": "model.global_transformer.",
        "decoder": "model.local_decoder.",
        "layers": "layers",
        "cross_layers": "cross_attn_layers",
        "tok_embeddings": "embed_tokens",
        "norm": "norm",
        "patcher.output": "model.patcher.lm_head",
        "encoder.patch_projection": "model.local_encoder.patch_embedding_projection",
        "global_transformer.input_projection": "model.global_transformer.token_embedding_projection",
        "decoder.patch_projection": "model.local_decoder.patch_embedding_projection",
        "decoder.output": "lm_head",
    },
    block={
        "attention_norm": ("input_layernorm",),
        "wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "wo": ("self_attn.o_proj",),
        "ffn_norm": ("post_attention_layernorm",),
        "feed_forward.w13": ("mlp.gate_proj", "mlp.up_proj"),
        "feed_forward.w2": ("mlp.down_proj",),
    },
    cross_attention={
        "norm_q": ("q_norm",),
        "norm_kv": ("k_norm",),
        "wq": ("q_proj",),
        "wkv": ("k_proj", "v_proj"),
        "wo": ("o_proj",),
    },
    hash_tables="model.encoder_hash_tok_embedding",
)


class TransformersLayout:
    """Reads and writes folders of transformers' ``BltForCausalLM``."""

    name = "transformers"
    description = "transformers BltForCausalLM"
    title = "transformers (`BltForCausalLM`, e.g. `itazap/blt-1b-hf`)"
    contents = f"`{CONFIG_FILE}` with four sub-configurations, `{WEIGHTS_FILE}` or shards with an index"
    recognized_by = "`model_type: blt`"
    files = (CONFIG_FILE, WEIGHTS_FILE)
    weight_files = (WEIGHTS_FILE, INDEX_FILE)
    hub_files = ("*.json", "*.safetensors")
    patcher_prefix = NAMES.parts["patcher"]

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Implement `Layout.recognizes` by ``model_type`` or ``architectures``."""
        architectures = config.get("architectures")
        named = isinstance(architectures, list) and "BltForCausalLM" in architectures
        return config.get("model_type") == "blt" or named

    def open(self, path: Path, patcher: Path | None) -> Checkpoint:
        """Implement `Layout.open`."""
        from fastblt.models.formats.checkpoint import Checkpoint
        from fastblt.models.formats.separate_patcher import with_patcher, without_patcher
        from fastblt.models.formats.stores import TensorStore, open_safetensors

        config = read_config(path / CONFIG_FILE, read_json(path / CONFIG_FILE))
        store: TensorStore = open_safetensors(path)
        if config.patcher is None:
            # transformers stores an entropy model in every mode, unless patch_in_forward is false.
            store = without_patcher(self, store)
        return with_patcher(Checkpoint(self, path, config, store, self.pieces(config)), patcher)

    def open_patcher(self, path: Path) -> StoredPatcher:
        """Implement `Layout.open_patcher`."""
        from fastblt.models.formats.separate_patcher import patcher_of

        return patcher_of(self.open(path, None))

    def pieces(self, config: BltConfig) -> Pieces:
        """Implement `Layout.pieces`; the tensors of a draft decoder are left out."""
        return translate(config.without_draft, NAMES)

    def config_text(self, config: BltConfig, dtype: str) -> str:
        """Implement `WritableLayout.config_text`."""
        return write_config(config.without_draft, dtype)

    def differences(self, config: BltConfig) -> list[str]:
        """Implement `WritableLayout.differences`."""
        found = []
        if config.has_draft:
            found.append("transformers has no draft decoder: its weights were left out, all others are unchanged")
        if config.document_masks:
            found.append("transformers masks no documents: it differs after an EOS inside the text")
        rule = config.patching
        if rule.mode == "entropy" and rule.max_patch_length is not None:
            found.append("transformers' max_patch_length reads the wrong latent at the last byte of some prefixes")
        if rule.mode != "entropy" and rule.max_patch_length != 1:
            mode = rule.mode
            found.append(f"transformers has no {mode} patches: it makes every byte one, unless given patch_lengths")
        return found


def read_config(path: Path, data: dict[str, Any]) -> BltConfig:
    """Return the configuration of a transformers folder.

    Args:
        path: of its config.json, for messages.
        data: content of that file.

    Raises:
        ConfigError: a field is invalid, or describes something that this project does not compute.
    """
    top = Fields(data, str(path))
    extra = top.inside("fastblt")
    top.expect(data.get("vocab_size", VOCAB_SIZE) == VOCAB_SIZE, "vocab_size", str(VOCAB_SIZE))
    top.require("tie_word_embeddings", False, None)
    window = top.optional_integer("local_attention_window_len", missing=WINDOW)
    patcher, encoder = top.inside("patcher_config"), top.inside("encoder_config")
    decoder, latents = top.inside("decoder_config"), top.inside("global_config")
    for part in (patcher, encoder, decoder):
        part.expect(part.data.get("vocab_size", VOCAB_SIZE) == VOCAB_SIZE, "vocab_size", str(VOCAB_SIZE))
    k = top.integer("cross_attn_k", 2)
    for part in (encoder, decoder):
        part.expect(part.integer("cross_attn_k", 2) == k, "cross_attn_k", f"{k}, as in the main configuration")
    if encoder.integer("num_hidden_layers", 1) > 1:
        encoder.require("cross_attn_all_layers", False, None)
    if decoder.integer("num_hidden_layers", 9) > 1:
        decoder.require("cross_attn_all_layers", True)
    patching = _patching(top)
    entropy = _stack(patcher, 768, 14, 12, 2048, 1e4, patcher.optional_integer("sliding_window", missing=WINDOW))
    values: dict[str, Any] = {
        "name": extra.text("name", model_name(path.absolute().parent)),
        "patcher": entropy if patching.mode == "entropy" else None,
        "encoder": _stack(encoder, 1024, 1, 16, None, 5e5, window),
        "global_transformer": _stack(latents, 2048, 25, 16, 5632, 5e5, None),
        "decoder": _stack(decoder, 1024, 9, 16, 2816, 5e5, window),
        "patching": patching,
        "hash": _hash(top),
        "cross_attn_k": k,
        "document_masks": extra.flag("document_masks", False),
    }
    with naming(str(path)):
        return BltConfig(**values)


def _stack(
    part: Fields, dim: int, layers: int, heads: int, ffn_dim: int | None, theta: float, window: int | None
) -> StackConfig:
    """Read one sub-configuration; the arguments are transformers' defaults."""
    part.require("hidden_act", "silu")
    dim, heads = part.integer("hidden_size", dim), part.integer("num_attention_heads", heads)
    part.expect(heads > 0, "num_attention_heads", "a positive integer")
    part.expect(
        part.integer("num_key_value_heads", heads) == heads,
        "num_key_value_heads",
        f"null or num_attention_heads={heads} (grouped queries are not supported)",
    )
    part.expect(dim % heads == 0 and part.integer("head_dim", dim // heads) == dim // heads, "head_dim", "dim / heads")
    rope = part.inside("rope_parameters")
    scaling = part.inside("rope_scaling")
    for kind in (rope, scaling):
        for key in ("rope_type", "type"):
            kind.require(key, "default")
    return StackConfig(
        dim=dim,
        layers=part.integer("num_hidden_layers", layers),
        heads=heads,
        ffn_dim=part.integer("intermediate_size", ffn_dim or int(8 * dim / 3)),
        rope_theta=rope.number("rope_theta", part.number("rope_theta", theta)),
        window=window,
        norm_eps=part.number("rms_norm_eps", part.number("norm_eps", 1e-5)),
    )


def _patching(top: Fields) -> PatchingConfig:
    top.require("monotonicity", False, None)
    if not top.flag("patch_in_forward", True) and top.text("patching_mode", "entropy") == "entropy":
        return PatchingConfig(top.number("patching_threshold", THRESHOLD), 1, "static")
    return patching_rule(top, "patching_threshold")


def patching_rule(fields: Fields, threshold: str) -> PatchingConfig:
    """Return the rule that ``patching_mode`` names.

    Args:
        fields: object that has this field.
        threshold: name of the field with the threshold, which is kept in every mode: a patcher may be passed later.

    Raises:
        ConfigError: the rule is not supported.
    """
    mode = fields.text("patching_mode", "entropy")
    longest = fields.optional_integer("max_patch_length")
    nats = fields.number(threshold, THRESHOLD)
    if mode == "entropy":
        return PatchingConfig(nats, longest)
    if mode == "space":
        return PatchingConfig(nats, longest, "space")
    if mode == "byte":
        return PatchingConfig(nats, 1, "static")
    fields.expect(mode == "static", "patching_mode", "entropy, space, static or byte (others are not supported)")
    size = fields.number("patch_size")
    fields.expect(size == int(size) and size > 0, "patch_size", "a positive whole number (patching_mode is static)")
    return PatchingConfig(nats, int(size) if longest is None else min(int(size), longest), "static")


def _hash(top: Fields) -> HashConfig:
    sizes = top.data.get("encoder_hash_byte_group_size") or [3, 4, 5, 6, 7, 8]
    top.expect(isinstance(sizes, list), "encoder_hash_byte_group_size", "a list of integers")
    return HashConfig(
        tuple(sizes),
        top.integer("encoder_hash_byte_group_vocab", 500_002),
        top.integer("encoder_hash_byte_group_nb_functions", 1),
    )


def write_config(config: BltConfig, dtype: str) -> str:
    """Return the text of a config.json for transformers.

    Args:
        config: of a BLT.
        dtype: of the weights, PyTorch's name.

    Raises:
        CheckpointError: transformers has no such model.
    """
    _check_expressible(config)
    patcher = config.patcher
    top: dict[str, Any] = {
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "tie_word_embeddings": False,
        "cross_attn_k": config.cross_attn_k,
        "local_attention_window_len": config.decoder.window,
        "encoder_hash_byte_group_size": list(config.hash.sizes),
        "encoder_hash_byte_group_vocab": config.hash.rows,
        "encoder_hash_byte_group_nb_functions": config.hash.functions,
        **_patching_fields(config.patching),
        "encoder_config": {
            **_stack_fields(config.encoder),
            "vocab_size": config.vocab_size,
            "cross_attn_k": config.cross_attn_k,
            "cross_attn_all_layers": False,
            "hidden_size_global": config.global_transformer.dim,
        },
        "global_config": _stack_fields(config.global_transformer),
        "decoder_config": {
            **_stack_fields(config.decoder),
            "vocab_size": config.vocab_size,
            "cross_attn_k": config.cross_attn_k,
            "cross_attn_all_layers": True,
            "hidden_size_global": config.global_transformer.dim,
        },
        "fastblt": {"name": config.name, "document_masks": config.document_masks},
    }
    if patcher is not None:
        fields = {**_stack_fields(patcher), "vocab_size": config.vocab_size, "sliding_window": patcher.window}
        top["patcher_config"] = fields
    return json.dumps(top, indent=2) + "\n"


def _check_expressible(config: BltConfig) -> None:
    def expect(condition: bool, name: str, found: object, expected: str) -> None:
        if not condition:
            raise CheckpointError(f"{config.name}: transformers' BLT has no {name} {found!r}, expected {expected}")

    expect(config.decoder_input == "encoder", "decoder_input", config.decoder_input, "'encoder' (a BLT, not a BLT-D)")
    windows = (config.encoder.window, config.decoder.window)
    expect(windows[0] == windows[1], "local windows", windows, "the same window in encoder and decoder")
    expect(config.global_transformer.window is None, "global window", config.global_transformer.window, "none")
    expect(config.hash.tables > 0, "number of hash tables", config.hash.tables, "at least one")


def _stack_fields(stack: StackConfig) -> dict[str, Any]:
    return {
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.heads,
        "intermediate_size": stack.ffn_dim,
        "rms_norm_eps": stack.norm_eps,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": stack.rope_theta},
    }


def _patching_fields(rule: PatchingConfig) -> dict[str, Any]:
    if rule.mode == "static":
        # Without an entropy model transformers makes every byte a patch, unless its caller passes patch_lengths.
        mode = "byte" if rule.max_patch_length == 1 else "static"
        return {"patch_in_forward": False, "patching_mode": mode, "patch_size": rule.max_patch_length}
    return {
        "patch_in_forward": rule.mode == "entropy",
        "patching_mode": rule.mode,
        "patching_threshold": rule.threshold,
        "max_patch_length": rule.max_patch_length,
    }
