"""Names configurations: the test model, the shipped one, one to measure with, and the published geometries."""

from __future__ import annotations

import dataclasses

from fastblt.models.config import BltConfig, ConfigError, HashConfig, PatchingConfig, StackConfig
from fastblt.models.shown import shown

_PATCHER_RELEASED = StackConfig(dim=768, layers=14, heads=12, ffn_dim=2048, rope_theta=10_000.0, window=512)
_ENCODER_1B = StackConfig(dim=1024, layers=1, heads=16, ffn_dim=2816, window=512)
_GLOBAL_1B = StackConfig(dim=2048, layers=25, heads=16, ffn_dim=5632)
_DECODER_1B = StackConfig(dim=1024, layers=9, heads=16, ffn_dim=2816, window=512)


def _tiny(name: str) -> BltConfig:
    """Return a model for tests: two heads everywhere, windows shorter than the tests' sequences."""
    local = StackConfig(dim=32, layers=1, heads=2, ffn_dim=48, window=24)
    return BltConfig(
        name=name,
        patcher=StackConfig(dim=32, layers=1, heads=2, ffn_dim=48, rope_theta=10_000.0, window=20),
        encoder=local,
        global_transformer=StackConfig(dim=64, layers=2, heads=2, ffn_dim=96),
        decoder=StackConfig(dim=32, layers=2, heads=2, ffn_dim=48, window=24),
        # With random weights entropies are between 4.7 and 5.2 nats: about a third of them are greater than this.
        patching=PatchingConfig(threshold=5.1, max_patch_length=6),
        hash=HashConfig(sizes=(3, 4), rows=97),
        decoder_input="embedding",
        block_size=4,
    )


def _blt_d_8m(name: str) -> BltConfig:
    """Return the shipped checkpoint's geometry: real proportions (heavy global transformer) at CPU size."""
    return BltConfig(
        name=name,
        patcher=StackConfig(dim=128, layers=3, heads=4, ffn_dim=384, rope_theta=10_000.0, window=256),
        encoder=StackConfig(dim=96, layers=1, heads=3, ffn_dim=384, window=256),
        global_transformer=StackConfig(dim=288, layers=4, heads=6, ffn_dim=768),
        decoder=StackConfig(dim=96, layers=2, heads=3, ffn_dim=384, window=256),
        patching=PatchingConfig(max_patch_length=8),
        hash=HashConfig(sizes=(3, 4, 5, 6), rows=6_000),
        cross_attn_k=3,
        decoder_input="embedding",
        block_size=8,
    )


def _mid(name: str) -> BltConfig:
    """Return blt-d-1b with all widths times 9/32 and small hash tables: its cost profile at CPU size."""
    local = StackConfig(dim=288, layers=1, heads=9, ffn_dim=792, window=512)
    return BltConfig(
        name=name,
        patcher=StackConfig(dim=216, layers=14, heads=6, ffn_dim=576, rope_theta=10_000.0, window=512),
        encoder=local,
        global_transformer=StackConfig(dim=576, layers=25, heads=9, ffn_dim=1584),
        decoder=dataclasses.replace(local, layers=9),
        patching=PatchingConfig(max_patch_length=8),
        hash=HashConfig(rows=2_000),
        decoder_input="embedding",
        block_size=16,
    )


def _blt_30m(name: str) -> BltConfig:
    """Return a BLT of 29.5 M parameters in the released models' proportions, for comparison with other software."""
    local = StackConfig(dim=192, layers=1, heads=3, ffn_dim=512, window=512)
    return BltConfig(
        name=name,
        patcher=StackConfig(dim=192, layers=6, heads=3, ffn_dim=512, rope_theta=10_000.0, window=512),
        encoder=local,
        global_transformer=StackConfig(dim=384, layers=10, heads=6, ffn_dim=1024),
        decoder=dataclasses.replace(local, layers=4),
        hash=HashConfig(rows=5_000),
    )


def _blt_300m(name: str) -> BltConfig:
    """Return a BLT of 321.5 M parameters in the same proportions."""
    local = StackConfig(dim=512, layers=1, heads=8, ffn_dim=1536, window=512)
    return BltConfig(
        name=name,
        patcher=StackConfig(dim=384, layers=12, heads=6, ffn_dim=1024, rope_theta=10_000.0, window=512),
        encoder=local,
        global_transformer=StackConfig(dim=1024, layers=16, heads=8, ffn_dim=2816),
        decoder=dataclasses.replace(local, layers=6),
        hash=HashConfig(rows=20_000),
    )


def _blt_1b(name: str) -> BltConfig:
    return BltConfig(
        name=name,
        patcher=_PATCHER_RELEASED,
        encoder=_ENCODER_1B,
        global_transformer=_GLOBAL_1B,
        decoder=_DECODER_1B,
    )


def _blt_7b(name: str) -> BltConfig:
    return BltConfig(
        name=name,
        patcher=_PATCHER_RELEASED,
        encoder=StackConfig(dim=1280, layers=1, heads=20, ffn_dim=3584, window=512),
        global_transformer=StackConfig(dim=4096, layers=32, heads=32, ffn_dim=11008),
        decoder=StackConfig(dim=1280, layers=6, heads=20, ffn_dim=3584, window=512),
        cross_attn_k=4,
    )


def _blt_d_1b(name: str) -> BltConfig:
    """Return blt-1b's geometry as a BLT-D, like the model of arXiv 2605.08044."""
    return dataclasses.replace(
        _blt_1b(name), patching=PatchingConfig(max_patch_length=8), decoder_input="embedding", block_size=16
    )


def _blt_d_3b(name: str) -> BltConfig:
    """Return a BLT-D near the 3B model of arXiv 2605.08044, which reports parameters, but no widths.

    Parameters here (and there): global transformer 2.867e9 (2.82e9), encoder 25.2e6 (26e6), decoder 160.9e6 (160e6).
    """
    return BltConfig(
        name=name,
        patcher=_PATCHER_RELEASED,
        encoder=StackConfig(dim=1152, layers=1, heads=18, ffn_dim=3072, window=512),
        global_transformer=StackConfig(dim=3456, layers=20, heads=27, ffn_dim=9216),
        decoder=StackConfig(dim=1152, layers=7, heads=18, ffn_dim=3072, window=512),
        cross_attn_k=3,
        patching=PatchingConfig(max_patch_length=8),
        decoder_input="embedding",
        block_size=16,
    )


PRESETS = {
    "tiny": _tiny,
    "blt-d-8m": _blt_d_8m,
    "mid": _mid,
    "blt-30m": _blt_30m,
    "blt-300m": _blt_300m,
    "blt-1b": _blt_1b,
    "blt-7b": _blt_7b,
    "blt-d-1b": _blt_d_1b,
    "blt-d-3b": _blt_d_3b,
}


def preset(name: str) -> BltConfig:
    """Return the configuration with this name.

    Raises:
        ConfigError: there is no such preset; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {shown(name)}: unknown, expected one of {', '.join(PRESETS)}")
    return PRESETS[name](name)
