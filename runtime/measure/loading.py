"""Determines what a measured folder computes in."""

from __future__ import annotations

from pathlib import Path

from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import is_bundle


def bundle_dtype(folder: Path) -> str:
    """Return the type that a bundle computes in; fp32 for a checkpoint, which only the eager backend runs."""
    return Bundle.open(folder, check=False).manifest.dtype if is_bundle(folder) else "fp32"
