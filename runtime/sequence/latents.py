"""Makes the latents of a sequence: closes its patches, encodes them and runs the global transformer on them."""

from __future__ import annotations

import numpy as np

from fastblt.models.config import BlockLatent, BltConfig
from fastblt.runtime.backends.batching import EncoderCall, GlobalCall, PatcherCall
from fastblt.runtime.backends.protocol import encodes_whole_patches
from fastblt.runtime.sequence.parts import Calls
from fastblt.runtime.sequence.patches import PatchTable
from fastblt.runtime.sequence.token_buffer import TokenBuffer


class Latents:
    """Brings patches and latents up to date with the tokens.

    Where nothing reads byte states and patches are short, a patch is encoded whole when it closes; otherwise rows are
    encoded as they come.

    Its methods yield the calls that have to be made.

    Args:
        config: the model's.
        tokens: of the sequence.
    """

    def __init__(self, config: BltConfig, tokens: TokenBuffer) -> None:
        self.patches = PatchTable(config.patching, tokens.capacity)
        self.encodes_whole_patches = encodes_whole_patches(config)
        self._has_patcher = config.patching.mode == "entropy"
        self._tokens = tokens

    @property
    def newest(self) -> int:
        """Return the index of the newest latent of a closed patch."""
        return self.patches.latents_ready - 1

    def read_patches(self, end: int) -> Calls[None]:
        """Let the patcher, if there is one, read the tokens before ``end``, and close patches."""
        patches, tokens = self.patches, self._tokens
        first, known = patches.read_until, len(patches.ends)
        if first == end:
            return
        ids, entropies = tokens.between(first, end), None
        if self._has_patcher:
            entropies = yield PatcherCall(first, ids, tokens.visible_from(first, end))
        patches.read(ids, tokens.before(first), entropies)
        if tokens.documents is not None:
            for patch in range(known, len(patches.ends)):
                tokens.documents.close_patch(patch, patches.start_of(patch), patches.ends[patch])

    def update(self, first: int, end: int, latent: BlockLatent) -> Calls[int]:
        """Read the tokens before ``end``, make the latents that are missing, and return the index of the newest.

        Args:
            first: position of the first token that is not scored.
            end: position after the last token to read.
            latent: ``partial``: make that of the open patch as well, if there is anything in it; it is the newest then.
        """
        yield from self.read_patches(end)
        partial = latent == "partial" and end > self.patches.open_start
        yield from self.make(first, end, partial=partial)
        return len(self.patches.ends) - (0 if partial else 1)

    def make(self, first: int, end: int, *, partial: bool) -> Calls[None]:
        """Make the latents of the patches that have none yet.

        Args:
            first: position of the first token that is not encoded, where patches are not encoded whole.
            end: position after the last token that was read.
            partial: make the latent of the open patch up to ``end`` as well.
        """
        patches, documents = self.patches, self._tokens.documents
        first_patch, count = patches.latents_ready, patches.without_latent + partial
        if not count:
            yield from self.encode_open(first, end)
            return
        bounds = patches.bounds_without_latent() + [end] * partial
        if self.encodes_whole_patches:
            first, end = bounds[0], bounds[-1]
        yield from self._encode(first, end, bounds)
        seen = None if documents is None else documents.patches_seen(first_patch, count)
        yield GlobalCall(first_patch, count, seen)
        patches.latents_ready = len(patches.ends)

    def encode_open(self, first: int, end: int) -> Calls[None]:
        """Encode tokens of a patch that closes later; where patches are encoded whole, there is nothing to do yet.

        Args:
            first: as for `make`.
            end: position after the last of them; no patch without a latent ends before it.
        """
        if self.encodes_whole_patches:
            return
        start = self.patches.next_latent_start
        if end > start:
            yield from self._encode(first, end, [start, end])

    def _encode(self, first: int, end: int, bounds: list[int]) -> Calls[None]:
        """Encode the tokens from ``first`` to ``end``, and pool the patches between ``bounds``."""
        # What is in a patch with a latent has been encoded, scored or not.
        first = max(first, bounds[0])
        starts, ends = np.array(bounds[:-1], dtype=np.int64), np.array(bounds[1:], dtype=np.int64)
        ids, seen = self._tokens.with_history(first, end), self._tokens.visible_from(first, end)
        yield EncoderCall(first, ids, starts, ends, seen)
