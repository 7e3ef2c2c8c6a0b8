"""Reads and writes the folder of a run that adapts a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.atomic_file import write_file
from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig, ConfigError, build_dataclass
from fastblt.models.draft_decoder import DRAFT_PREFIX, DraftDecoder
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.formats.convert import convert
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.own import FastbltLayout
from fastblt.models.formats.stores import DTYPE_NAMES, JoinedStore, StoredTensor
from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.models.training.run_files import RECIPE_FILE, STATE_FILE

#: Fields of a recipe that may differ when a run is continued.
_FREE = ("eval_every", "save_every", "accumulate", "checkpoint_activations")


def weights_digest(model: Blt) -> str:
    """Return a digest of a model's configuration and weights, in the types that they have here."""
    digest = hashlib.sha256(model.config.to_json().encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_run(out: Path, config: AdaptConfig, digest: str) -> None:
    """Write what a run was started with."""
    write_file(out / RECIPE_FILE, json.dumps({"adapt": asdict(config), "weights_sha256": digest}, indent=1) + "\n")


def check_same_run(out: Path, config: AdaptConfig, digest: str) -> None:
    """Check that a run was started with the same recipe and the same weights.

    Raises:
        ConfigError: it has another recipe, or its file cannot be read.
        CheckpointError: it adapts another checkpoint.
    """
    path = out / RECIPE_FILE
    found = read_json(path, ConfigError, "what a run of `fastblt adapt` was started with", constants=True)
    if not isinstance(found, dict) or "adapt" not in found:
        raise ConfigError(f"{path}: found the run of another command, expected one of `fastblt adapt`")
    try:
        theirs = build_dataclass(AdaptConfig, found["adapt"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name, value in asdict(config).items():
        has = getattr(theirs, name)
        if name not in _FREE and value != has:
            raise ConfigError(f"{path}: found a run with {name}={has!r}, expected {value!r} as in the command")
    if found.get("weights_sha256") != digest:
        has = shown(found.get("weights_sha256"))
        raise CheckpointError(
            f"{out / STATE_FILE}: found the state of a run that adapts another checkpoint (sha256 of its weights "
            f"{has}), expected {digest!r}; use a new folder"
        )


def write_adapted(folder: Path, base: Checkpoint, config: BltConfig, draft: DraftDecoder) -> None:
    """Write a checkpoint: every tensor of ``base`` in its stored type, and the draft decoder in fp32.

    Args:
        folder: created atomically.
        base: that was adapted.
        config: of the adapted model.
        draft: its draft decoder.
    """
    tensors = {
        f"{DRAFT_PREFIX}{name}": tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in draft.state_dict().items()
    }
    pieces = {**base.pieces, **{name: (name,) for name in tensors}}
    store = JoinedStore([("", base.store), ("", _InMemory(tensors, str(folder)))])
    convert(Checkpoint(FastbltLayout(), folder, config, store, pieces), folder, FastbltLayout.name)


class _InMemory:
    """Stores tensors that are in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self._made = tensors
        self.tensors = {n: StoredTensor(tuple(t.shape), DTYPE_NAMES[t.dtype], where) for n, t in tensors.items()}

    def read(self, name: str) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.read`."""
        return self._made[name]

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.rows`."""
        return self._made[name][first:last]

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.gather`."""
        return self._made[name][rows]
