import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig, ConfigError, HashConfig, PatchingConfig, StackConfig
from fastblt.models.parameters import count_parameters
from fastblt.models.presets import PRESETS, preset

Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("name", PRESETS)
def test_config_is_the_same_when_saved_and_loaded(name: str, tmp_path: Path) -> None:
    config = preset(name)
    assert config.name == name
    config.save(tmp_path / "config.json")
    assert BltConfig.load(tmp_path / "config.json") == config


@given(
    heads=st.integers(1, 8),
    pairs=st.integers(1, 64),
    window=st.none() | st.integers(1, 4096),
    threshold=st.floats(0, 10),
    longest=st.none() | st.integers(1, 99),
    sizes=st.lists(st.integers(1, 12), unique=True, max_size=6),
    functions=st.integers(0, 11),
    k=st.integers(1, 5),
    mode=st.sampled_from(["entropy", "space", "static"]),
    masks=st.booleans(),
    latent=st.sampled_from(["closed", "partial"]),
)
def test_config_survives_json_text_when_valid(
    heads: int,
    pairs: int,
    window: int | None,
    threshold: float,
    longest: int | None,
    sizes: list[int],
    functions: int,
    k: int,
    mode: Literal["entropy", "space", "static"],
    masks: bool,
    latent: Literal["closed", "partial"],
) -> None:
    assume(mode != "static" or longest is not None)
    stack = StackConfig(dim=heads * 2 * pairs, layers=1, heads=heads, ffn_dim=8, window=window)
    config = BltConfig(
        "drawn",
        stack if mode == "entropy" else None,
        *[stack] * 3,
        patching=PatchingConfig(threshold, longest, mode),
        hash=HashConfig(tuple(sizes), 11, functions),
        cross_attn_k=k,
        document_masks=masks,
        block_latent=latent,
    )
    again = BltConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert isinstance(again.hash.sizes, tuple)


def test_config_of_a_file_without_a_block_latent_is_that_of_closed_patches() -> None:
    data = preset("blt-d-8m").to_dict()
    assert data.pop("block_latent") == "closed"
    assert BltConfig.from_dict(data) == preset("blt-d-8m")


def put(*path: str, value: object) -> Edit:
    """Sets a (nested) field."""

    def edit(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return edit


BAD_FIELDS: list[tuple[Edit, str]] = [
    (put("color", value="red"), "color"),
    (put("decoder", "color", value="red"), "decoder.color"),
    (lambda d: d.pop("name"), "name"),
    (put("patcher", value=None), "patcher"),
    (put("patching", "mode", value="space"), "patcher"),
    (put("patching", "mode", value="bpe"), "patching.mode"),
    (put("patching", value={"mode": "static"}), "patching.max_patch_length"),
    (put("document_masks", value=1), "document_masks"),
    (put("block_latent", value="open"), "block_latent"),
    (put("block_latent", value=None), "block_latent"),
    (lambda d: d.pop("patcher"), "patcher"),
    (lambda d: d["global_transformer"].pop("ffn_dim"), "global_transformer.ffn_dim"),
    (put("name", value=""), "name"),
    (put("name", value=7), "name"),
    (put("encoder", value=None), "encoder"),
    (put("encoder", value=[1]), "encoder"),
    (put("encoder", "dim", value="32"), "encoder.dim"),
    (put("encoder", "dim", value=32.0), "encoder.dim"),
    (put("encoder", "dim", value=True), "encoder.dim"),
    (put("encoder", "dim", value=0), "encoder.dim"),
    (put("patcher", "layers", value=-1), "patcher.layers"),
    (put("decoder", "heads", value=3), "decoder.heads"),
    (put("decoder", "heads", value=32), "decoder.heads"),
    (put("decoder", "window", value=0), "decoder.window"),
    (put("decoder", "window", value=2.5), "decoder.window"),
    (put("decoder", "rope_theta", value=0), "decoder.rope_theta"),
    (put("decoder", "norm_eps", value=-1e-5), "decoder.norm_eps"),
    (put("patching", "threshold", value=-0.1), "patching.threshold"),
    (put("patching", "threshold", value=float("nan")), "patching.threshold"),
    (put("patching", "threshold", value=None), "patching.threshold"),
    (put("patching", "max_patch_length", value=0), "patching.max_patch_length"),
    (put("hash", "sizes", value=3), "hash.sizes"),
    (put("hash", "sizes", value=[3, 3]), "hash.sizes"),
    (put("hash", "sizes", value=[3, "4"]), "hash.sizes[1]"),
    (put("hash", "sizes", value=[0]), "hash.sizes"),
    (put("hash", "rows", value=0), "hash.rows"),
    (put("hash", "functions", value=12), "hash.functions"),
    (put("cross_attn_k", value=0), "cross_attn_k"),
    (put("decoder_input", value="bytes"), "decoder_input"),
    (put("decoder_input", value="encoder"), "block_size"),
    (put("block_size", value=-1), "block_size"),
    (put("vocab_size", value=261), "vocab_size"),
    (put("encoder", "dim", value=64), "decoder.dim"),
]


@pytest.mark.parametrize(("edit", "field"), BAD_FIELDS, ids=[f"{i}-{f}" for i, (_, f) in enumerate(BAD_FIELDS)])
def test_error_names_file_and_field_when_field_is_bad(edit: Edit, field: str, tmp_path: Path) -> None:
    data = preset("tiny").to_dict()
    edit(data)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        BltConfig.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: config field {field!r}: found ")
    assert ", expected " in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"tiny"'])
def test_error_names_file_when_content_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json: "):
        BltConfig.load(path)


def test_error_names_file_when_it_is_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            BltConfig.load(path)
        assert str(path) in str(caught.value)


def test_optional_fields_take_defaults_when_missing() -> None:
    data = preset("blt-1b").to_dict()
    for key in ("patching", "hash", "cross_attn_k", "decoder_input", "block_size", "vocab_size"):
        del data[key]
    assert BltConfig.from_dict(data) == preset("blt-1b")


def test_config_cannot_be_changed_when_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("tiny").cross_attn_k = 3  # type: ignore[misc]


def test_unknown_preset_is_named_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="'blt-9b': unknown, expected one of tiny, blt-d-8m, mid, blt-30m"):
        preset("blt-9b")


@pytest.mark.parametrize(("name", "total"), [("blt-1b", 4_633_391_872), ("blt-7b", 10_653_082_624)])
def test_parameters_are_the_published_number_when_preset_is_released(name: str, total: int) -> None:
    with torch.device("meta"):
        model = Blt(preset(name))
    assert sum(p.numel() for p in model.parameters()) == total
    assert count_parameters(preset(name)).total == total


@pytest.mark.parametrize("name", PRESETS)
def test_counted_parts_are_those_of_the_modules(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = Blt(config)
    found = dict.fromkeys(
        ("patcher", "encoder", "global_transformer", "decoder", "byte_embeddings", "hash_embeddings", "draft"), 0
    )
    for key, p in model.named_parameters():
        part = key.split(".")[0]
        if "hash_embeddings" in key:
            part = "hash_embeddings"
        elif "tok_embeddings" in key:
            part = "byte_embeddings"
        found[part] += p.numel()
    assert dataclasses.asdict(count_parameters(config)) == found


@pytest.mark.parametrize(
    ("name", "latent", "encoder", "decoder"),
    [("blt-d-1b", 1.28e9, 19e6, 160e6), ("blt-d-3b", 2.82e9, 26e6, 160e6)],
)
def test_parts_are_those_of_the_paper_when_preset_is_block_diffusion(
    name: str, latent: float, encoder: float, decoder: float
) -> None:
    counts = count_parameters(preset(name))
    assert counts.global_transformer == pytest.approx(latent, rel=0.02)
    assert counts.encoder == pytest.approx(encoder, rel=0.05)
    assert counts.decoder == pytest.approx(decoder, rel=0.05)
    assert preset(name).patching.max_patch_length == 8


def test_mid_has_the_proportions_of_the_published_block_diffusion_model() -> None:
    mid, large = count_parameters(preset("mid")), count_parameters(preset("blt-d-1b"))
    scale = mid.global_transformer / large.global_transformer
    for part in ("encoder", "decoder", "patcher"):
        assert getattr(mid, part) == pytest.approx(scale * getattr(large, part), rel=0.02), part
    assert 100e6 <= mid.total - mid.hash_embeddings <= 150e6
    assert mid.hash_embeddings < 0.05 * mid.total
    config, published = preset("mid"), preset("blt-d-1b")
    for name in ("patcher", "encoder", "global_transformer", "decoder"):
        small, big = getattr(config, name), getattr(published, name)
        assert (small.layers, small.window, small.rope_theta) == (big.layers, big.window, big.rope_theta), name
    same = ("patching", "cross_attn_k", "decoder_input", "block_size")
    assert [getattr(config, name) for name in same] == [getattr(published, name) for name in same]


def test_global_holds_most_of_the_shipped_model() -> None:
    counts = count_parameters(preset("blt-d-8m"))
    rest = counts.total - counts.byte_embeddings - counts.hash_embeddings
    assert 0.60 <= counts.global_transformer / rest <= 0.75
