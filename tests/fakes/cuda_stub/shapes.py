"""Makes models with the layers and head sizes of a preset and few heads: as many launches, a few megabytes.

What a graph launches depends on layers and element types; widths and table sizes change what a kernel reads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fastblt.export.bundle_writer import export_bundle
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.presets import preset
from fastblt.models.training.loop import initialize


def narrow(config: BltConfig) -> BltConfig:
    """Return a model of the same layers and head sizes whose stacks have two heads each, and few hash rows."""

    def stack(wide: StackConfig) -> StackConfig:
        dim = 2 * wide.head_dim
        return dataclasses.replace(wide, dim=dim, heads=2, ffn_dim=2 * dim)

    return dataclasses.replace(
        config,
        patcher=None if config.patcher is None else stack(config.patcher),
        encoder=stack(config.encoder),
        global_transformer=stack(config.global_transformer),
        decoder=stack(config.decoder),
        hash=dataclasses.replace(config.hash, rows=97),
    )


def shape(name: str) -> BltConfig:
    """Return the narrow model of a preset's shape; with ``+draft`` behind the preset, a draft decoder is added."""
    base, _, draft = name.partition("+")
    config = narrow(preset(base))
    return dataclasses.replace(config, decoder_input="mixed", block_size=8) if draft else config


def write(folder: Path, name: str, dtype: str, hash_tables: str = "host") -> Path:
    """Export a narrow model (see `shape`) with random weights below ``folder``; return the bundle."""
    bundle = folder / f"{name}-{dtype}-{hash_tables}"
    if bundle.exists():
        return bundle
    checkpoint = folder / name
    if not checkpoint.exists():
        torch.manual_seed(0)
        model = Blt(shape(name))
        initialize(model)
        save_checkpoint(checkpoint, model)
    export_bundle(checkpoint, bundle, dtype=dtype, hash_tables=hash_tables, verify=False)
    return bundle
