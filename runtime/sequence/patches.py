"""Keeps the patches of one sequence as its tokens come: where they end, which latent each row reads, which exist.

The rule that closes patches is `fastblt.models.patch_rule`; nothing depends on how many tokens come at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastblt.models.config import PatchingConfig
from fastblt.models.patch_rule import closes_by_rule, ends_by_entropy, ends_by_space, is_full
from fastblt.models.tokens import SPACE_LIKE
from fastblt.runtime.backends.protocol import Floats, Ids

_SPACE_LIKE = np.array(SPACE_LIKE)


class PatchTable:
    """Holds the patches of the leading tokens of a sequence, and how many of them have a latent.

    Args:
        config: when patches close.
        capacity: most tokens.
    """

    def __init__(self, config: PatchingConfig, capacity: int) -> None:
        self.config = config
        self.ends: list[int] = []
        """Position after the last token of each closed patch."""
        self.latent_of: Ids = np.zeros(capacity, dtype=np.int64)
        """The patch whose latent each row reads: the newest that is closed. Valid for the tokens that were read."""
        self.read_until = 0
        """Leading tokens that were read, i.e. whose patches are known."""
        self.latents_ready = 0
        """Leading patches that have a latent."""

    @property
    def open_start(self) -> int:
        """Return the first position of the patch that is not closed."""
        return self.ends[-1] if self.ends else 0

    @property
    def next_latent_start(self) -> int:
        """Return the first position of the first patch that has no latent."""
        return self.start_of(self.latents_ready)

    @property
    def without_latent(self) -> int:
        """Return the number of closed patches that have no latent."""
        return len(self.ends) - self.latents_ready

    def start_of(self, patch: int) -> int:
        """Return the first position of a closed patch, or of the open one after them."""
        return self.ends[patch - 1] if patch else 0

    def read(self, ids: Ids, before: int, entropies: Floats | None) -> None:
        """Close patches among the tokens that follow those read so far.

        Args:
            ids: int64 [n], the tokens.
            before: the token before them; of no meaning at the beginning of the sequence.
            entropies: float32 [n], nats, of the token after each; None where the mode asks for none.
        """
        start, config = self.open_start, self.config
        for position, ends in enumerate(self._ends_by_mode(ids, before, entropies), self.read_until):
            if closes_by_rule(position, ends) or is_full(position + 1 - start, config):
                start = position + 1
                self.ends.append(start)
            self.latent_of[position] = len(self.ends) - 1
        self.read_until += len(ids)

    def _ends_by_mode(self, ids: Ids, before: int, entropies: Floats | None) -> list[bool]:
        """Return whether the mode's rule ends a patch, for each of the tokens."""
        found: list[bool]
        if entropies is not None:
            found = ends_by_entropy(entropies, self.config).tolist()
        elif self.config.mode == "space":
            like = _SPACE_LIKE[np.concatenate([[before], ids])]
            found = ends_by_space(ids, like[1:], like[:-1]).tolist()
        else:
            found = [False] * len(ids)
        return found

    def bounds_without_latent(self) -> list[int]:
        """Return where patches without a latent begin, in order, and where the last closed one ends.

        With n such patches there are n + 1 bounds; the last one is the beginning of the open patch.
        """
        return [self.next_latent_start, *self.ends[self.latents_ready :]]

    def rewind(self, length: int) -> None:
        """Forget the patches that tokens from position ``length`` on have closed."""
        self.read_until = length
        del self.ends[int(self.latent_of[length - 1]) + 1 if length else 0 :]
        self.latents_ready = min(self.latents_ready, len(self.ends))

    def restore(self, ends: Sequence[int], read_until: int, latents_ready: int) -> None:
        """Take over the patches of a text of which ``read_until`` leading tokens were read.

        Raises:
            ValueError: there are no such patches: their ends do not rise, or are not among the tokens.
        """
        bounds = [0, *ends]
        if any(end <= start for start, end in pairwise(bounds)) or bounds[-1] > read_until:
            raise ValueError(f"patch ends: found {list(ends[:8])}, expected rising positions up to {read_until}")
        if latents_ready != len(bounds) - 1:
            raise ValueError(f"patches: found {latents_ready} latents, expected {len(bounds) - 1}, one of each patch")
        self.ends, self.read_until, self.latents_ready = list(ends), read_until, latents_ready
        self.latent_of[:read_until] = np.searchsorted(ends, np.arange(1, read_until + 1), side="right") - 1

    def clear(self) -> None:
        """Forget all patches."""
        self.ends.clear()
        self.read_until = self.latents_ready = 0
