"""Defines the local decoder: one row predicts one byte and reads earlier bytes and one latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastblt.models.cache import StackCache
from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.layers import (
    Attend,
    Block,
    CrossAttention,
    RMSNorm,
    attend_beside,
    causal_attend,
    keeping,
    rope_table,
)
from fastblt.models.tokens import VOCAB_SIZE


@dataclass(frozen=True)
class BlockRows:
    """Holds the corrupted blocks of a BLT-D training step; a block row predicts its own byte, not the next one."""

    ids: Tensor
    """int64 [batch, blocks, block_size], MASK_ID where a byte is hidden."""
    starts: Tensor
    """int64 [batch, blocks]: position of each block's first byte; a block sees clean bytes before it."""
    latent_index: Tensor
    """int64 [batch, blocks]: the latent that every row of the block reads."""

    @property
    def positions(self) -> Tensor:
        """Return the original byte positions of the rows, int64 [batch, blocks * block_size]."""
        offset = torch.arange(self.ids.shape[2], device=self.ids.device)
        return (self.starts.unsqueeze(-1) + offset).flatten(1)


@dataclass(frozen=True)
class CleanRows:
    """Holds what the clean rows of a batch have left for rows of blocks and drafts."""

    latent_kv: Tensor
    """[batch, patches, layers, 2, cross_attn_k, dim], see `Decoder.latent_kv`."""
    keys_values: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, [batch, length, heads, head_dim] each, rotated."""
    visible_from: Tensor | None
    """int64 [batch, length], or more where blocks begin past the text: first position that a row may see; None: 0."""

    @property
    def length(self) -> int:
        """Return the number of rows of each sequence."""
        return self.keys_values[0][0].shape[1]


class DecoderLayers(nn.Module):
    """Runs rows through cross-attention to one latent and a windowed block per layer, then norm and output matrix."""

    config: StackConfig
    cross_layers: nn.ModuleList
    layers: nn.ModuleList
    norm: RMSNorm
    output: nn.Linear

    def step(
        self,
        rows: Tensor,
        latent_kv: Tensor,
        latent_index: Tensor,
        cache: StackCache,
        position: int,
        *,
        block: int = 0,
        visible_from: Tensor | None = None,
    ) -> Tensor:
        """Run new rows with a cache.

        Args:
            rows: [1, rows, dim], the first is at ``position``.
            latent_kv: [1, latents, layers, 2, cross_attn_k, dim], see `Decoder.latent_kv`.
            latent_index: int64 [1, rows], into the second axis of ``latent_kv``.
            cache: the decoder's cache.
            position: byte position and cache slot of the first row.
            block: the last ``block`` rows are denoised together and see each other; the others are causal.
            visible_from: see `run_cached`.

        Returns:
            Logits [1, rows, vocab].
        """
        live = cache.rows(position, rows.shape[1], block, visible_from)
        attends = [live.attend(i) for i in range(len(self.layers))]
        return self.run(rows, latent_kv, latent_index, live.rope, attends)

    def run(self, x: Tensor, latent_kv: Tensor, latent_index: Tensor, rope: Tensor, attends: list[Attend]) -> Tensor:
        """Run all layers on rows [batch, rows, dim], with one of ``attends`` per layer; return logits.

        Latents of batch 1 are one store for all sequences, into which ``latent_index`` then points.
        """
        batch, rows, dim = x.shape
        stride = latent_kv.shape[1] if latent_kv.shape[0] == batch else 0
        flat = (latent_index + torch.arange(batch, device=x.device).unsqueeze(1) * stride).flatten()
        for index, (cross, block) in enumerate(zip(self.cross_layers, self.layers, strict=True)):
            k, v = latent_kv[:, :, index].flatten(0, 1).index_select(0, flat).unbind(1)
            x = cross(x.reshape(batch * rows, 1, dim), k, v, None).view(batch, rows, dim)
            x = block(x, rope, attends[index])
        return self.output(self.norm(x))


class Decoder(DecoderLayers):
    """Holds the decoder of clean rows, and of block rows too unless a draft decoder has these."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        stack = config.decoder
        self.config = stack
        self.cross_attn_k = config.cross_attn_k
        self.tok_embeddings: nn.Embedding | None = None
        if config.decoder_input == "embedding":
            self.tok_embeddings = nn.Embedding(VOCAB_SIZE + 1, stack.dim)
        self.patch_projection = nn.Linear(config.global_transformer.dim, config.cross_attn_k * stack.dim, bias=False)
        self.cross_layers = nn.ModuleList(
            CrossAttention(stack.dim, stack.heads, stack.norm_eps) for _ in range(stack.layers)
        )
        self.layers = nn.ModuleList(Block(stack) for _ in range(stack.layers))
        self.norm = RMSNorm(stack.dim, stack.norm_eps)
        self.output = nn.Linear(stack.dim, config.vocab_size, bias=False)

    def rows(self, ids: Tensor, states: Tensor | None) -> Tensor:
        """Return the input rows: embeddings of ``ids`` (BLT-D), or the encoder's byte states (BLT)."""
        if self.tok_embeddings is not None:
            return self.tok_embeddings(ids)
        assert states is not None, "this decoder reads the encoder's byte states"
        return states

    def latent_kv(self, latents: Tensor) -> Tensor:
        """Return the keys and values of every layer for latents [batch, patches, global dim].

        Returns:
            [batch, patches, layers, 2, cross_attn_k, dim]; computed once for a latent, read by many rows.
        """
        tokens = self.patch_projection(latents).unflatten(-1, (self.cross_attn_k, -1))
        each = []
        for cross in self.cross_layers:
            assert isinstance(cross, CrossAttention)
            each.append(torch.stack(cross.keys_values(tokens), dim=2))
        return torch.stack(each, dim=2)

    def forward(
        self,
        clean: Tensor,
        latents: Tensor,
        latent_index: Tensor,
        blocks: BlockRows | None = None,
        visible_from: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run whole sequences, optionally with corrupted blocks beside them.

        Args:
            clean: input rows, [batch, length, dim], see `rows`.
            latents: [batch, patches, global dim].
            latent_index: int64 [batch, length], the latent that each clean row reads.
            blocks: corrupted blocks.
            visible_from: int64 [batch, length], first position that each clean row may see; None: 0. A block's
                rows see what the row at its first position sees.

        Returns:
            Logits of the clean rows [batch, length, vocab], and of the block rows
            [batch, blocks * block_size, vocab] or None.
        """
        logits, read = self.run_clean(clean, self.latent_kv(latents), latent_index, visible_from)
        return logits, None if blocks is None else self.run_blocks(blocks, read)

    def run_clean(
        self, clean: Tensor, latent_kv: Tensor, latent_index: Tensor, visible_from: Tensor | None = None
    ) -> tuple[Tensor, CleanRows]:
        """Run the clean rows of whole sequences; return their logits, and what rows of blocks read.

        Args:
            clean: see `forward`.
            latent_kv: see `latent_kv`.
            latent_index: see `forward`.
            visible_from: see `forward`; it may have more positions, where blocks begin.
        """
        length = clean.shape[1]
        rope = rope_table(torch.arange(length, device=clean.device), self.config.head_dim, self.config.rope_theta)
        seen = None if visible_from is None else visible_from[:, :length]
        attend = causal_attend(length, self.config.window, clean.device, seen)
        keys_values: list[tuple[Tensor, Tensor]] = []
        attends = [keeping(attend, keys_values)] * len(self.layers)
        logits = self.run(clean, latent_kv, latent_index, rope, attends)
        return logits, CleanRows(latent_kv, keys_values, visible_from)

    def run_blocks(self, blocks: BlockRows, clean: CleanRows) -> Tensor:
        """Return the logits [batch, blocks * block_size, vocab] of corrupted blocks beside clean rows."""
        assert self.tok_embeddings is not None, "only a decoder with its own embedding has a [MASK] row"
        x = self.tok_embeddings(blocks.ids).flatten(1, 2)
        index = blocks.latent_index.repeat_interleave(blocks.ids.shape[2], 1)
        rope = rope_table(blocks.positions, self.config.head_dim, self.config.rope_theta)
        mask = _block_mask(clean.length, self.config.window, blocks, clean.visible_from)
        attends = [attend_beside(keys, values, mask) for keys, values in clean.keys_values]
        return self.run(x, clean.latent_kv, index, rope, attends)


def _block_mask(length: int, window: int | None, blocks: BlockRows, visible_from: Tensor | None) -> Tensor:
    """Return the mask of block rows, bool [batch, 1, block rows, length + block rows]."""
    batch, count, size = blocks.ids.shape
    device = blocks.ids.device
    key = torch.arange(length, device=device)
    starts = blocks.starts.repeat_interleave(size, dim=1).unsqueeze(-1)
    seen = key < starts
    if window is not None:
        seen = seen & (key > blocks.positions.unsqueeze(-1) - window)
    if visible_from is not None:
        first = visible_from.gather(1, blocks.starts).repeat_interleave(size, dim=1)
        seen = seen & (key >= first.unsqueeze(-1))
    block = torch.arange(count, device=device).repeat_interleave(size)
    own = (block.unsqueeze(1) == block.unsqueeze(0)).expand(batch, -1, -1)
    return torch.cat([seen, own], dim=-1).unsqueeze(1)
