"""Checks the folder that a bundle will be written to; needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

from fastblt.runtime.bundle.manifest import is_bundle


class TargetError(ValueError):
    """Reports a folder that must not be written to."""


def check_bundle_target(folder: Path, *, force: bool) -> None:
    """Check that a bundle may be written to a folder: it is new, empty, or a bundle that may be replaced.

    Args:
        folder: where the bundle will be.
        force: whether an earlier bundle there may be replaced. Nothing else ever is.

    Raises:
        TargetError: something is there that must not be replaced.
    """
    if is_bundle(folder):
        if not force:
            raise TargetError(f"{folder}: found a bundle, expected a new name; --force replaces it")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TargetError(f"{folder}: exists and is not a bundle, expected a new name or a bundle to replace")
