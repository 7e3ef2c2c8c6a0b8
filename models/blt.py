"""Defines the whole model: bytes -> patcher -> encoder -> global transformer -> decoder -> bytes."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastblt.models.config import BltConfig, expect
from fastblt.models.decoder import BlockRows, CleanRows, Decoder
from fastblt.models.documents import first_bytes, first_patches
from fastblt.models.draft_decoder import DRAFT_PREFIX, DraftDecoder
from fastblt.models.encoder import Encoder
from fastblt.models.global_transformer import GlobalTransformer
from fastblt.models.patcher import Patcher, entropy
from fastblt.models.patching import Patches, closes_patch, find_patches, space_ends


class Blt(nn.Module):
    """Holds a Byte Latent Transformer with its entropy patcher; its kind depends on the configuration."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        self.patcher: Patcher | None = None
        if config.patcher is not None:
            self.patcher = Patcher(config.patcher, config.vocab_size)
        self.encoder = Encoder(config)
        self.global_transformer = GlobalTransformer(config)
        self.decoder = Decoder(config)
        self.draft: DraftDecoder | None = None
        if config.has_draft:  # last, so that the other tensors have the same order in every kind of model
            self.draft = DraftDecoder(config, self.decoder)

    def with_draft(self, block_size: int, rank: int | None) -> Blt:
        """Return a model that shares this one's tensors and has a draft decoder, which begins as a copy of its decoder.

        Only the draft decoder's parameters require gradients.

        Args:
            block_size: longest block.
            rank: of the matrices that are added to the decoder's; None: the draft decoder has its own.

        Raises:
            ConfigError: this is not a BLT without blocks, or a number is out of range.
        """
        found = self.config.decoder_input
        expect(found == "encoder", "decoder_input", found, "'encoder' (a BLT without blocks)")
        config = dataclasses.replace(self.config, decoder_input="mixed", block_size=block_size, draft_rank=rank)
        with torch.device("meta"):
            model = Blt(config)
        model.load_state_dict(self.state_dict(), strict=False, assign=True)
        model.requires_grad_(False)
        model.draft = DraftDecoder(config, model.decoder).to(self.decoder.output.weight)
        model.draft.start_from(model.decoder, model.encoder.tok_embeddings.weight)
        return model.train(self.training)

    def merged(self) -> Blt:
        """Return a model that computes the same with full matrices in its draft decoder; this one if it has them."""
        if self.draft is None or self.config.draft_rank is None:
            return self
        with torch.device("meta"):
            model = Blt(dataclasses.replace(self.config, draft_rank=None))
        tensors = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(DRAFT_PREFIX)}
        tensors |= {f"{DRAFT_PREFIX}{name}": tensor for name, tensor in self.draft.merged().items()}
        model.load_state_dict(tensors, assign=True)
        return model.train(self.training).requires_grad_(False)

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
            blocks: corrupted blocks (BLT-D training, or a draft decoder).
            latent_index: int64 [batch, length]: read these latents instead of the last closed ones, as
                drafts do.

        Returns:
            Logits [batch, length, vocab] of the byte after each position, and logits of the block rows or None.
        """
        patches = self.segment(ids) if patches is None else patches
        if self.draft is not None and blocks is not None:
            logits, clean = self.run_clean(ids, patches, latent_index)
            return logits, self.draft(blocks, clean).flatten(1, 2)
        states, latents = self.encode(ids, patches)
        index = patches.latent_index if latent_index is None else latent_index
        return self.decoder(self.decoder.rows(ids, states), latents, index, blocks, self._first_bytes(ids))

    def run_clean(self, ids: Tensor, patches: Patches, latent_index: Tensor | None = None) -> tuple[Tensor, CleanRows]:
        """Run whole sequences and keep what the draft decoder reads of them; arguments as for `forward`.

        Returns:
            Logits [batch, length, vocab], and what `DraftDecoder.forward` takes.
        """
        states, latents = self.encode(ids, patches)
        index = patches.latent_index if latent_index is None else latent_index
        seen = self._first_bytes(F.pad(ids, (0, 1)))
        return self.decoder.run_clean(self.decoder.rows(ids, states), self.decoder.latent_kv(latents), index, seen)
