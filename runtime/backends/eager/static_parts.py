"""Runs each part of a model on rows of a fixed number, over memory of fixed addresses: what is compiled.

Every module takes numbers of the host as tensors and keeps what passes from part to part in buffers, so that one
compiled program serves every position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastblt.models.blt import Blt
from fastblt.models.draft_decoder import DraftDecoder
from fastblt.models.patcher import Patcher, entropy
from fastblt.runtime.backends.eager.readback import summarize
from fastblt.runtime.backends.eager.static_cache import StaticCache


class Links(nn.Module):
    """Holds what passes from part to part: byte states, the newest patch embeddings, and every latent.

    Args:
        model: its weights have the type and the device of all of it.
        positions: most positions, those of padding rows included.
        patches: most patches of one call.
    """

    states: Tensor
    """[1, positions, dim]."""
    embeddings: Tensor
    """[1, patches, patch_dim]."""
    latent_kv: Tensor
    """[1, positions, layers, 2, cross_attn_k, dim]."""

    def __init__(self, model: Blt, positions: int, patches: int) -> None:
        super().__init__()
        config, weight = model.config, model.decoder.output.weight
        stack = config.decoder
        for name, shape in (
            ("states", (1, positions, config.encoder.dim)),
            ("embeddings", (1, patches, config.patch_dim)),
            ("latent_kv", (1, positions, stack.layers, 2, config.cross_attn_k, stack.dim)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=weight.dtype, device=weight.device))

    def clear(self) -> None:
        """Fill all of it with zeros."""
        for buffer in self.buffers():
            buffer.zero_()


class StaticPatcher(nn.Module):
    """Computes entropies."""

    def __init__(self, patcher: Patcher, cache: StaticCache) -> None:
        super().__init__()
        self.patcher, self.cache = patcher, cache

    def forward(self, control: Tensor, slots: Tensor, ids: Tensor) -> Tensor:
        """Return entropies float32 [rows] for ids int64 [rows]; the others are those of `StaticCache.rows`."""
        x = self.patcher.tok_embeddings(ids).unsqueeze(0)
        x = self.cache.rows(control, slots).run(self.patcher.layers, x)
        return entropy(self.patcher.output(self.patcher.norm(x)))[0]


class StaticEncoder(nn.Module):
    """Computes byte states, and pools patches."""

    def __init__(self, model: Blt, cache: StaticCache, links: Links) -> None:
        super().__init__()
        self.encoder, self.cache, self.links = model.encoder, cache, links
        self.history = model.config.hash.context - 1

    def forward(self, control: Tensor, slots: Tensor, ids: Tensor, starts: Tensor, members: Tensor) -> None:
        """Encode rows and pool patches.

        Args:
            control: see `StaticCache.rows`.
            slots: see `StaticCache.rows`.
            ids: int64 [history + rows].
            starts: int64 [2, patches]: position of each patch's first byte, and its length.
            members: int64 [longest], 0, 1, ...: as many as a patch may be long.
        """
        both = ids.unsqueeze(0)
        x = self.encoder.embed(both[:, self.history :], both[:, : self.history])
        x = self.cache.rows(control, slots).run(self.encoder.layers, x)
        states = self.links.states
        states.index_copy_(1, control[0], x)
        begin, length = starts.unbind(0)
        valid = members < length.unsqueeze(1)
        at = torch.where(valid, begin.unsqueeze(1) + members, begin.unsqueeze(1))
        rows = states.index_select(1, at.flatten())
        positions = torch.arange(at.numel(), device=at.device).view(1, *at.shape)
        pooled = self.encoder.pool(rows, positions, valid.unsqueeze(0))
        self.links.embeddings[:, : at.shape[0]].copy_(pooled)


class StaticGlobal(nn.Module):
    """Computes latents of the patches that were pooled last, and the decoder's keys and values of them."""

    def __init__(self, model: Blt, cache: StaticCache, links: Links) -> None:
        super().__init__()
        self.transformer, self.decoder, self.cache, self.links = model.global_transformer, model.decoder, cache, links

    def forward(self, control: Tensor, slots: Tensor) -> None:
        """Run as many patches as ``control`` has columns; see `StaticCache.rows`."""
        x = self.transformer.input_projection(self.links.embeddings[:, : control.shape[1]])
        latents = self.cache.rows(control, slots).run(self.transformer.layers, x)
        self.links.latent_kv.index_copy_(1, control[0], self.decoder.latent_kv(latents))


class StaticDraft(nn.Module):
    """Computes distributions of the bytes of blocks, over the decoder's cache."""

    def __init__(self, draft: DraftDecoder, cache: StaticCache, links: Links) -> None:
        super().__init__()
        self.draft, self.cache, self.links = draft, cache, links

    def forward(self, control: Tensor, slots: Tensor, ids: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
        """Decode rows; arguments and results are those of `StaticDecoder.forward`."""
        live = self.cache.rows(control, slots)
        attends = [live.attend(index) for index in range(len(self.draft.layers))]
        x = self.draft.tok_embeddings(ids.unsqueeze(0))
        logits = self.draft.run(x, self.links.latent_kv, latents.unsqueeze(0), live.rope, attends)[0].float()
        return logits, *summarize(logits)


class StaticDecoder(nn.Module):
    """Computes distributions of next tokens."""

    def __init__(self, model: Blt, cache: StaticCache, links: Links) -> None:
        super().__init__()
        self.decoder, self.cache, self.links = model.decoder, cache, links

    def forward(self, control: Tensor, slots: Tensor, ids: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
        """Decode rows.

        Args:
            control: see `StaticCache.rows`.
            slots: see `StaticCache.rows`.
            ids: int64 [rows].
            latents: int64 [rows], the latent that each row reads.

        Returns:
            Logits float32 [rows, vocab], and what `summarize` finds in them.
        """
        states = self.links.states.index_select(1, control[0])
        live = self.cache.rows(control, slots)
        attends = [live.attend(index) for index in range(len(self.decoder.layers))]
        x = self.decoder.rows(ids.unsqueeze(0), states)
        logits = self.decoder.run(x, self.links.latent_kv, latents.unsqueeze(0), live.rope, attends)[0].float()
        return logits, *summarize(logits)
