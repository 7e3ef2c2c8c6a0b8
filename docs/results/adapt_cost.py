"""Measures a step of `fastblt adapt` of a cut-down model, and works out memory and time of blt-1b and blt-7b from it.

The cut-down models have the real widths and fewer layers. Their steps are counted by PyTorch's `FlopCounterMode`, and
what is kept for the backward pass by hooks. Run: python docs/results/adapt_cost.py [--measure]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastblt.models.adapting.loop import Adapter
from fastblt.models.adapting.memory import memory_need
from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.adapting.text_files import open_text
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.parameters import count_parameters
from fastblt.models.presets import preset
from fastblt.models.training.loop import initialize

ADAPT = AdaptConfig()
#: Layers of the cut-down models: patcher, global transformer, decoder.
CUT = (1, 1, 2)
BYTES_PER_PATCH = 4.0


def step_flops(config: BltConfig, adapt: AdaptConfig, bytes_per_patch: float) -> float:
    """Return the floating-point operations of a step, of matrix products alone."""
    p = count_parameters(config)
    tokens = adapt.batch * adapt.window
    blocks = adapt.batch * adapt.blocks_per_window
    of_latents = config.global_transformer.dim * config.cross_attn_k * config.decoder.dim
    of_latents += config.decoder.layers * config.cross_attn_k * 2 * config.decoder.dim**2
    decoder = p.decoder - of_latents - (config.decoder.layers * (2 * config.decoder.dim**2))
    per_latent = p.global_transformer + of_latents
    clean = tokens * (p.patcher + p.encoder + decoder) + tokens / bytes_per_patch * per_latent
    drafted = blocks * adapt.block_size * (p.encoder + decoder) if adapt.distilled else 0
    rows = blocks * (1 + adapt.block_size)
    factors = 3.0 if adapt.rank is None else 2.0  # a frozen matrix has no gradient of its own
    return 2 * (clean + drafted + rows * decoder * factors)


def cut_down(name: str) -> BltConfig:
    """Return a published geometry with fewer layers and small hash tables."""
    full = preset(name)
    patcher, glob, decoder = (
        dataclasses.replace(stack, layers=layers)
        for stack, layers in zip((full.patcher, full.global_transformer, full.decoder), CUT, strict=True)
    )
    hashes = dataclasses.replace(full.hash, rows=1_000)
    return dataclasses.replace(full, patcher=patcher, global_transformer=glob, decoder=decoder, hash=hashes)


def measure(name: str, adapt: AdaptConfig) -> dict[str, float]:
    """Run a step of a cut-down model."""
    config = cut_down(name)
    torch.manual_seed(0)
    model = Blt(config)
    initialize(model)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "base", model)
        (Path(folder) / "text").write_bytes(Path("docs/architecture.md").read_bytes() * 4)
        text = open_text([Path(folder) / "text"], adapt.window)
        run = Adapter(adapt, open_checkpoint(Path(folder) / "base"), text, Path(folder) / "run")
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
        with FlopCounterMode(display=False) as flops, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            run._backward(1, None)
        began = time.process_time()
        run._backward(2, None)
        seconds = time.process_time() - began
        frozen, _ = run._blocks([run._generator(1, window) for window in range(adapt.batch)])
        bytes_per_patch = adapt.batch * adapt.window / float((frozen.patches.lengths > 0).sum())
    held = sum(size for place, size in kept.items() if place not in weights)
    need = memory_need(config, 0, adapt, 1, 4)
    return {
        "counted_gflop": flops.get_total_flops() / 1e9,
        "formula_gflop": step_flops(config, adapt, bytes_per_patch) / 1e9,
        "processor_seconds": seconds,
        "kept_mb": held / 1e6,
        "formula_mb": need.activations / 1e6,
        "bytes_per_patch": bytes_per_patch,
    }


def table(name: str, rank: int | None, checkpointing: bool, accumulate: int) -> dict[str, object]:
    """Return memory of one GPU and operations of a run of the default length."""
    config = preset(name)
    adapt = dataclasses.replace(
        ADAPT, rank=rank, checkpoint_activations=checkpointing, accumulate=accumulate, steps=20_000
    )
    p = count_parameters(config)
    weights = 2 * (p.total - p.patcher) + 4 * p.patcher
    need = memory_need(config, weights, adapt, 1, 2)
    return {
        "model": name,
        "rank": rank,
        "checkpoint_activations": checkpointing,
        "accumulate": accumulate,
        **{key: round(value / 1e9, 2) for key, value in dataclasses.asdict(need).items()},
        "total": round(need.total / 1e9 + 0.6, 1),
        "tflop_of_a_step": round(step_flops(config, adapt, BYTES_PER_PATCH) / 1e12, 1),
        "hours_at_100_tflops": round(step_flops(config, adapt, BYTES_PER_PATCH) * adapt.steps / 1e14 / 3600, 1),
    }


def main() -> None:
    """Print measurements and the table as JSON."""
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    if "--measure" in sys.argv:
        small = dataclasses.replace(ADAPT, batch=1, window=128)
        found["measured"] = [
            {"rank": rank, **measure("blt-1b", dataclasses.replace(small, rank=rank))} for rank in (16, None)
        ]
    found["table"] = [
        table(name, rank, checkpointing, accumulate)
        for name in ("blt-1b", "blt-7b")
        for rank, checkpointing, accumulate in ((16, False, 1), (16, False, 4), (None, False, 4), (None, True, 8))
    ]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
