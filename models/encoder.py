"""Defines the local encoder: bytes to byte states, and the byte states of a patch to its embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastblt.models.cache import StackCache
from fastblt.models.config import BltConfig
from fastblt.models.hashing import hash_rows
from fastblt.models.layers import Block, CrossAttention
from fastblt.models.patching import Patches
from fastblt.models.stack import run_cached, run_sequence


class Encoder(nn.Module):
    """Applies byte and hash n-gram embeddings, windowed blocks, max-pool and patch cross-attention."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        stack = config.encoder
        self.config = stack
        self.hash = config.hash
        self.cross_attn_k = config.cross_attn_k
        self.tok_embeddings = nn.Embedding(config.vocab_size, stack.dim)
        self.hash_embeddings = nn.Embedding(config.hash.tables * config.hash.rows, stack.dim)
        self.layers = nn.ModuleList(Block(stack) for _ in range(stack.layers))
        self.patch_projection = nn.Linear(stack.dim, config.patch_dim, bias=False)
        self.cross_attention = CrossAttention(stack.dim, stack.heads, stack.norm_eps)

    def embed(self, ids: Tensor, history: Tensor | None = None) -> Tensor:
        """Return the sum of the byte embedding and one row of every hash table.

        Args:
            ids: int64 [batch, rows].
            history: int64 [batch, context - 1], the tokens before ``ids`` (0 before the sequence); None: zeros.

        Returns:
            [batch, rows, dim].
        """
        x = self.tok_embeddings(ids)
        if self.hash.tables == 0:
            return x
        if history is None:
            history = ids.new_zeros(ids.shape[0], self.hash.context - 1)
        rows = torch.stack(hash_rows(torch.cat([history, ids], dim=1), self.hash), dim=-1)
        table = self.hash_embeddings.weight
        if table.dtype != x.dtype:
            # The table may be in 16 bits and mapped from its file, see `load_model`.
            return x + table[rows].to(x.dtype).sum(-2)
        bags = F.embedding_bag(rows.flatten(0, 1), table, mode="sum")
        return x + bags.view_as(x)

    def pool(self, states: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Pool byte states into patch embeddings.

        Args:
            states: [batch, length, dim].
            positions: int64 [batch, patches, longest], the bytes of each patch.
            valid: bool, like ``positions``; False beyond the end of a shorter patch.

        Returns:
            [batch, patches, cross_attn_k * dim]; meaningless for patches without bytes.
        """
        batch, patches, longest = positions.shape
        flat = (positions + torch.arange(batch, device=states.device).view(-1, 1, 1) * states.shape[1]).flatten()
        rows = states.flatten(0, 1).index_select(0, flat).view(batch, patches, longest, -1)
        highest = rows.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(2)
        highest = highest.masked_fill(~valid[..., :1], 0.0)
        queries = self.patch_projection(highest).view(batch * patches, self.cross_attn_k, -1)
        k, v = (
            part.flatten(0, 1).index_select(0, flat).view(batch * patches, longest, -1)
            for part in self.cross_attention.keys_values(states)
        )
        seen = valid | ~valid.any(-1, keepdim=True)  # an empty patch must not divide by zero
        pooled = self.cross_attention(queries, k, v, seen.view(batch * patches, 1, 1, longest))
        return pooled.view(batch, patches, -1)

    def forward(self, ids: Tensor, patches: Patches, visible_from: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return byte states [batch, length, dim] and patch embeddings of whole sequences ``ids`` [batch, length].

        ``visible_from``, int64 [batch, length]: first position that each row may see; None: 0.
        """
        states = self.states(ids, visible_from)
        return states, self.pool(states, *patches.members)

    def states(
        self, ids: Tensor, visible_from: Tensor | None = None, kept: list[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Return byte states [batch, length, dim] of whole sequences; ``kept``: see `run_sequence`."""
        return run_sequence(self.layers, self.embed(ids), self.config, visible_from, kept)

    def step(self, embedded: Tensor, cache: StackCache, position: int, visible_from: Tensor | None = None) -> Tensor:
        """Return byte states [1, rows, dim] of new rows ``embedded`` [1, rows, dim], the first at ``position``.

        ``visible_from``: see `run_cached`.
        """
        return run_cached(self.layers, embedded, cache, position, visible_from)
