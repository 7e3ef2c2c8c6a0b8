"""Makes a bundle of every kind that runs on a CPU, with random weights, and prompts of every kind."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastblt.calibration.calibrate import calibrate
from fastblt.calibration.heldout import load_prompts, load_text
from fastblt.calibration.request import CalibrationRequest
from fastblt.export.bundle_writer import export_bundle
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.presets import preset
from fastblt.models.tokens import BOS_ID, EOS_ID
from fastblt.models.training.loop import initialize
from fastblt.runtime.generation import Prompt
from fastblt.runtime.measure.scoring.windows import Text, cut_windows

#: Folder below the fixtures: of each model, a folder with ``checkpoint`` and ``bundle``.
MODELS = "models"
_SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "blt-d-8m"
_D = preset("tiny")
_BLT = dataclasses.replace(_D, name="tiny-encoder", decoder_input="encoder", block_size=0, cross_attn_k=3)


def _patches(config: BltConfig, **rule: object) -> BltConfig:
    return dataclasses.replace(config, patcher=None, patching=PatchingConfig(**rule))  # type: ignore[arg-type]


#: Name -> geometry, and options of the export.
_KINDS: dict[str, tuple[BltConfig, dict[str, object]]] = {
    "blt-d": (_D, {}),
    "blt": (_BLT, {}),
    "lowered": (_D, {"lowered": True}),
    "hash-in-graph": (_BLT, {"hash_tables": "graph"}),
    "documents": (dataclasses.replace(_D, document_masks=True), {}),
    "documents-blt": (dataclasses.replace(_BLT, document_masks=True), {}),
    "space": (_patches(_D, mode="space", max_patch_length=5), {}),
    "static": (_patches(_BLT, mode="static", max_patch_length=3), {}),
}
#: Made of others: the shipped checkpoint, whose drafts are accepted as those of a trained model, and a quantized one.
TRAINED, QUANTIZED = "trained", "quantized"


def prepare_models(fixtures: Path) -> None:
    """Make every model that is not there."""
    for number, (name, (config, options)) in enumerate(_KINDS.items()):

        def write(folder: Path, config: BltConfig = config, seed: int = number) -> None:
            save_checkpoint(folder / "checkpoint", random_model(config, seed))

        _make(fixtures, name, write, options)
    if _SHIPPED.is_dir():
        _make(fixtures, TRAINED, lambda folder: shutil.copytree(_SHIPPED, folder / "checkpoint"), {})
    target = fixtures / MODELS / QUANTIZED
    if not target.exists():
        windows = tuple(cut_windows(Text("web", load_text("web")), 1, 96))
        prompts = tuple(prompt.data[:40] for prompt in load_prompts("web")[:1])
        request = CalibrationRequest(
            "w8", prompts=prompts, windows=windows, budget={"bpb": 10.0}, samples=16, new_bytes=16, anchors=1
        )
        calibrate(fixtures / MODELS / "blt-d" / "bundle", target / "bundle", request)


def model_names(fixtures: Path) -> list[str]:
    """Return the names of all models, sorted."""
    return sorted(path.name for path in (fixtures / MODELS).iterdir())


def random_model(config: BltConfig, seed: int) -> Blt:
    """Return a model of random weights, norms included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blt(config)
        initialize(model)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.8, 1.2)
    return model.eval().requires_grad_(False)


def _make(fixtures: Path, name: str, write: Callable[[Path], object], options: dict[str, object]) -> None:
    target = fixtures / MODELS / name
    if target.exists():
        return
    partial = fixtures / f"partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    export_bundle(partial / "checkpoint", partial / "bundle", verify=False, **options)  # type: ignore[arg-type]
    target.parent.mkdir(exist_ok=True)
    partial.rename(target)


def random_prompt(rng: random.Random, most: int) -> Prompt:
    """Return up to ``most`` bytes noise, text, valid and broken UTF-8, repetitions, or ids with EOS inside."""
    length = rng.choice([0, 1, rng.randint(0, 8), rng.randint(0, 64), rng.randint(0, most)])
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(length)
    if kind == 1:
        text = load_text("web")
        start = rng.randrange(max(1, len(text) - length))
        return bytes(text[start : start + length])
    if kind == 2:
        # Without surrogates, which are no text.
        return "".join(
            chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xA0, 0xD800)])) for _ in range(length // 3)
        )
    if kind == 3:
        return "naïve “text” – Ünïcödé 語 ".encode()[: rng.randint(0, 40)] * (length // 40)
    if kind == 4:
        return (rng.randbytes(rng.randint(1, 5)) * length)[:length]
    ids = np.frombuffer(rng.randbytes(length), dtype=np.uint8).astype(np.int64) + 4
    ids[np.frombuffer(rng.randbytes(length), dtype=np.uint8) < 12] = EOS_ID
    return np.concatenate([np.array([BOS_ID]), ids])
