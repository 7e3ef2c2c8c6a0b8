"""Loads the eager model of a checkpoint or a bundle, for a device."""

from __future__ import annotations

from pathlib import Path

import torch

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.formats.registry import WEIGHT_FILES
from fastblt.runtime.backends.eager.bundle_weights import load_eager_model
from fastblt.runtime.backends.entry import ProviderError


def load_eager(folder: Path, provider: str, *, exact: bool = False) -> Blt:
    """Load the eager model of a checkpoint of any layout, or of the weights inside a bundle.

    Args:
        folder: of the checkpoint or bundle.
        provider: ``auto`` (the CPU), ``cpu`` or ``cuda``.
        exact: compute in fp32 whatever the bundle's dtype; a checkpoint's model does in any case.

    Raises:
        ProviderError: the provider is unknown, or PyTorch sees no GPU.
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint cannot be used.
    """
    device = "cpu" if provider == "auto" else provider
    if device not in ("cpu", "cuda"):
        raise ProviderError(f"provider: found {provider!r}, expected auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("provider: found 'cuda', but PyTorch sees no GPU on this machine")
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return load_checkpoint(folder, device=device).merged()
    return load_eager_model(folder, device, exact=exact)
