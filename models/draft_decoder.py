"""Defines the draft decoder: it denoises blocks beside a decoder whose clean rows stay what they were.

It has the decoder's geometry and an embedding table of its own with a [MASK] row. Its matrices are its own, or those
of the decoder plus a product of two low-rank matrices each (LoRA, arXiv 2106.09685). It reads the decoder's keys and
values of latents and of clean rows, so it has no weights that compute these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastblt.models.config import BltConfig
from fastblt.models.decoder import BlockRows, CleanRows, Decoder, DecoderLayers
from fastblt.models.layers import Block, CrossAttention, RMSNorm, attend_beside, rope_table
from fastblt.models.tokens import MASK_ID

#: Prefix of the draft decoder's tensors in a model.
DRAFT_PREFIX = "draft."
#: Endings of the names of a low-rank matrix's two factors.
LORA_A, LORA_B = "lora_a", "lora_b"


@dataclass(frozen=True)
class Anchors:
    """Holds the byte before each block, which is a row of the draft decoder too when a block is drafted."""

    ids: Tensor
    """int64 [batch, blocks]."""
    visible: Tensor
    """bool [batch, blocks]: the block sees the anchor's keys; otherwise those of the clean row at its position."""


class LoraLinear(nn.Module):
    """Computes ``x @ (W + B A).T``, where W is the weight of a layer of the decoder.

    Args:
        base: that layer; its weight is no parameter of this one.
        rank: rows of A and columns of B.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self._base = (base,)  # a module that is an attribute of its own would be registered
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.normal_(self.lora_a, std=base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` [..., in]; return [..., out]."""
        return F.linear(x, self._base[0].weight) + F.linear(F.linear(x, self.lora_a), self.lora_b)

    def merged(self) -> Tensor:
        """Return W + B A [out, in], computed in fp32 and converted to the type of W."""
        weight = self._base[0].weight
        return merge(weight, self.lora_a, self.lora_b).to(weight.dtype)


def merge(base: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Return ``base + lora_b @ lora_a`` in fp32; ``lora_b`` may have some of the rows, and ``base`` the same ones."""
    return base.float() + lora_b.float() @ lora_a.float()


class DraftDecoder(DecoderLayers):
    """Holds the weights of block rows.

    Args:
        config: of a model with a draft decoder.
        decoder: the model's decoder, whose matrices low-rank ones are added to.
    """

    def __init__(self, config: BltConfig, decoder: Decoder) -> None:
        super().__init__()
        stack, rank = config.decoder, config.draft_rank
        self.config = stack
        self.tok_embeddings = nn.Embedding(MASK_ID + 1, stack.dim)
        self.cross_layers = nn.ModuleList(
            CrossAttention(stack.dim, stack.heads, stack.norm_eps, own_keys=False) for _ in range(stack.layers)
        )
        self.layers = nn.ModuleList(Block(stack) for _ in range(stack.layers))
        self.norm = RMSNorm(stack.dim, stack.norm_eps)
        self.output = nn.Linear(stack.dim, config.vocab_size, bias=False)
        if rank is not None:
            for name in [name for name, module in self.named_modules() if isinstance(module, nn.Linear)]:
                parent, _, leaf = name.rpartition(".")
                base = cast(nn.Linear, decoder.get_submodule(name))
                setattr(self.get_submodule(parent), leaf, LoraLinear(base, rank))

    @torch.no_grad()
    def start_from(self, decoder: Decoder, embeddings: Tensor) -> None:
        """Begin as a copy of the decoder, whatever the rank.

        Args:
            decoder: of the same model.
            embeddings: [vocab, dim], rows of the bytes; that of [MASK] becomes their mean.
        """
        own = dict(self.named_parameters())
        for name, theirs in decoder.named_parameters():
            if name in own:
                own[name].copy_(theirs)
        for name, p in own.items():
            if name.endswith(LORA_B):
                p.zero_()
        self.tok_embeddings.weight[:MASK_ID] = embeddings
        self.tok_embeddings.weight[MASK_ID] = embeddings.mean(0)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Return the weights with full matrices, by the names that they have where the rank is None."""
        found = {name: p for name, p in self.state_dict().items() if not name.endswith((LORA_A, LORA_B))}
        return found | {f"{name}.weight": layer.merged() for name, layer in self.low_rank_layers()}

    def low_rank_layers(self) -> Iterator[tuple[str, LoraLinear]]:
        """Yield name and module of each layer that is the decoder's plus a low-rank one."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, LoraLinear))

    def forward(self, blocks: BlockRows, clean: CleanRows, anchors: Anchors | None = None) -> Tensor:
        """Run corrupted blocks of whole sequences; no block sees another.

        Args:
            blocks: at position 1 or later.
            clean: what the decoder computed; no gradient flows back through tensors that are detached.
            anchors: the byte before each block, which sees the clean rows before it and reads the block's latent;
                None: there are no such rows, and blocks see the clean rows before them.

        Returns:
            Logits [batch, blocks, block_size, vocab] of the blocks' own bytes. With anchors there is one more row of
            each block, the first; its logits are about the block's first byte.
        """
        ids = blocks.ids if anchors is None else torch.cat([anchors.ids.unsqueeze(-1), blocks.ids], dim=-1)
        batch, count, size = ids.shape
        first = blocks.starts - (size - blocks.ids.shape[2])
        positions = (first.unsqueeze(-1) + torch.arange(size, device=ids.device)).flatten(1)
        index = blocks.latent_index.repeat_interleave(size, 1)
        rope = rope_table(positions, self.config.head_dim, self.config.rope_theta)
        mask = _mask(positions.view(batch, count, size), blocks.starts, clean, anchors, self.config.window)
        attends = [attend_beside(keys, values, mask) for keys, values in clean.keys_values]
        logits = self.run(self.tok_embeddings(ids).flatten(1, 2), clean.latent_kv, index, rope, attends)
        return logits.unflatten(1, (count, size))


def _mask(positions: Tensor, starts: Tensor, clean: CleanRows, anchors: Anchors | None, window: int | None) -> Tensor:
    """Return what rows see, bool [batch, 1, rows, length + rows].

    Args:
        positions: int64 [batch, blocks, rows of a block].
        starts: int64 [batch, blocks], of each block's first byte.
        clean: see `DraftDecoder.forward`.
        anchors: see `DraftDecoder.forward`.
        window: of the decoder.
    """
    batch, count, size = positions.shape
    device, length = positions.device, clean.length
    in_block = positions >= starts.unsqueeze(-1)
    # Clean rows before `end` are seen: those before the block, or before its anchor.
    end = starts.unsqueeze(-1)
    if anchors is not None:
        end = end - (~in_block | anchors.visible.unsqueeze(-1)).long()
    key = torch.arange(length, device=device)
    seen = key < end.expand(-1, -1, size).unsqueeze(-1)
    # A row sees cells of its own block, or itself; cells see the anchor if they may.
    own = in_block.unsqueeze(-1) & in_block.unsqueeze(-2)
    own = own | torch.eye(size, dtype=torch.bool, device=device)
    if anchors is not None:
        own[..., 1:, 0] = anchors.visible.unsqueeze(-1)
    if window is not None:
        oldest = positions.unsqueeze(-1) - window
        seen, own = seen & (key > oldest), own & (positions.unsqueeze(-2) > oldest)
    if clean.visible_from is not None:
        # A block sees what the row at its first position sees, an anchor what that at its own does.
        at = torch.minimum(positions, starts.unsqueeze(-1)).flatten(1)
        first = clean.visible_from.gather(1, at).view(batch, count, size, 1)
        seen, own = seen & (key >= first), own & (positions.unsqueeze(-2) >= first)
    same = torch.eye(count, dtype=torch.bool, device=device).view(1, count, 1, count, 1)
    others = (own.unsqueeze(3) & same).reshape(batch, count * size, count * size)
    return torch.cat([seen.flatten(1, 2), others], dim=-1).unsqueeze(1)
