"""Decides which rows of a sequence's caches the rest of its text can read, and checks copies of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import Progress, State, encodes_whole_patches


def cache_ranges(config: BltConfig, progress: Progress) -> dict[str, slice]:
    """Return the rows of every part's caches that later rows can see, by part; patches count for the global one."""
    # Where patches are encoded whole, the open one has not been.
    ends = dict.fromkeys(config.stacks, progress.tokens) | {"global": progress.patches}
    if encodes_whole_patches(config):
        ends["encoder"] = progress.open_patch
    return {part: slice(first_visible(end, config.stacks[part].window), end) for part, end in ends.items()}


def open_patch_range(config: BltConfig, progress: Progress) -> slice:
    """Return the positions of the open patch that are encoded, but not pooled yet."""
    if encodes_whole_patches(config):
        return slice(progress.open_patch, progress.open_patch)
    return slice(progress.open_patch, max(progress.open_patch, progress.tokens))


def latent_range(progress: Progress) -> slice:
    """Return the newest latent, which the next rows read."""
    return slice(max(0, progress.patches - 1), progress.patches)


def first_visible(position: int, window: int | None) -> int:
    """Return the first position that a row sees: the window's, or 0."""
    return 0 if window is None else max(0, position - window + 1)


def check_state(state: State, places: Mapping[str, NDArray[Any]]) -> None:
    """Compare copies of rows with the places that they are to be written to.

    Raises:
        ValueError: a tensor is missing or unknown, or of another shape or type.
    """
    for name in sorted(state.keys() ^ places.keys()):
        one, other = ("a tensor", "none") if name in state else ("none", "a tensor")
        raise ValueError(f"{name}: found {one}, expected {other}")
    for name, place in places.items():
        found = state[name].dtype, list(state[name].shape)
        wanted = place.dtype, list(place.shape)
        if found != wanted:
            raise ValueError(f"{name}: found {found[0]} {found[1]}, expected {wanted[0]} {wanted[1]}")
