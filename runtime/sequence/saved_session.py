"""Describes copies of what a session has read, with which another session of the same model goes on."""

from __future__ import annotations

from typing import NamedTuple

from fastblt.runtime.backends.protocol import Ids, Progress, State


class SavedSession(NamedTuple):
    """Holds copies of what a session has read, on the host."""

    tokens: Ids
    """int64 [length], BOS first."""
    patch_ends: tuple[int, ...]
    """Position after the last token of each closed patch among those that are scored."""
    progress: Progress
    """How far the tokens have been read."""
    state: State
    """See `BackendSequence.state`."""

    @property
    def size(self) -> int:
        """Return the bytes of all copies."""
        return sum(array.nbytes for array in self.state.values())
