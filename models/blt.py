"""Defines the whole model: bytes -> patcher -> encoder -> global transformer -> decoder -> bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastblt.models.config import BltConfig
from fastblt.models.decoder import BlockRows, Decoder
from fastblt.models.documents import first_bytes, first_patches
from fastblt.models.encoder import Encoder
from fastblt.models.global_transformer import GlobalTransformer
from fastblt.models.patcher import Patcher, entropy
from fastblt.models.patching import Patches, closes_patch, find_patches, space_ends


class Blt(nn.Module):
    """Holds a Byte Latent Transformer (BLT or BLT-D, depending on its configuration) with its entropy patcher."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        self.patcher: Patcher | None = None
        if config.patcher is not None:
            self.patcher = Patcher(config.patcher, config.vocab_size)
        self.encoder = Encoder(config)
        self.global_transformer = GlobalTransformer(config)
        self.decoder = Decoder(config)

    @torch.no_grad()
    def segment(self, ids: Tensor, pad_to: int = 1) -> Patches:
        """Return the patches of sequences ``ids`` [batch, length], each beginning with BOS; see `find_patches`."""
        return find_patches(closes_patch(self._patch_ends(ids), self.config.patching), pad_to)

    def _patch_ends(self, ids: Tensor) -> Tensor:
        """Return the input of `closes_patch`: entropies, or the ends of patches by another rule."""
        if self.patcher is not None:
            return entropy(self.patcher(ids, self._first_bytes(ids)))
        if self.config.patching.mode == "space":
            return space_ends(ids)
        return torch.zeros_like(ids, dtype=torch.bool)

    def _first_bytes(self, ids: Tensor) -> Tensor | None:
        return first_bytes(ids) if self.config.document_masks else None

    def encode(self, ids: Tensor, patches: Patches) -> tuple[Tensor, Tensor]:
        """Return byte states [batch, length, dim] and latents [batch, patches, global dim] of whole sequences."""
        states, patch_embeddings = self.encoder(ids, patches, self._first_bytes(ids))
        seen = first_patches(ids, patches) if self.config.document_masks else None
        return states, self.global_transformer(patch_embeddings, seen)

    def forward(
        self,
        ids: Tensor,
        patches: Patches | None = None,
        blocks: BlockRows | None = None,
        latent_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of whole sequences.

        Args:
            ids: int64 [batch, length], each beginning with BOS.
            patches: from `segment`; None: computed here.
            blocks: corrupted blocks (BLT-D training).
            latent_index: int64 [batch, length]: read these latents instead of the last closed ones, as
                drafts do.

        Returns:
            Logits [batch, length, vocab] of the byte after each position, and logits of the block rows or None.
        """
        patches = self.segment(ids) if patches is None else patches
        states, latents = self.encode(ids, patches)
        index = patches.latent_index if latent_index is None else latent_index
        return self.decoder(self.decoder.rows(ids, states), latents, index, blocks, self._first_bytes(ids))
