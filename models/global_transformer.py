"""Defines the global transformer, which turns patch embeddings into latents."""

from __future__ import annotations

from torch import Tensor, nn

from fastblt.models.cache import StackCache
from fastblt.models.config import BltConfig
from fastblt.models.layers import Block
from fastblt.models.stack import run_cached, run_sequence


class GlobalTransformer(nn.Module):
    """Runs causal blocks over patches, with RoPE by patch index; no embedding and no final norm."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config.global_transformer
        self.input_projection = (
            nn.Linear(config.patch_dim, self.config.dim, bias=False) if config.has_global_projection else nn.Identity()
        )
        self.layers = nn.ModuleList(Block(self.config) for _ in range(self.config.layers))

    def forward(self, patch_embeddings: Tensor, visible_from: Tensor | None = None) -> Tensor:
        """Return latents [batch, patches, dim] of patch embeddings [batch, patches, cross_attn_k * encoder dim].

        ``visible_from``, int64 [batch, patches]: first patch that each may see; None: 0.
        """
        return run_sequence(self.layers, self.input_projection(patch_embeddings), self.config, visible_from)

    def step(
        self, patch_embeddings: Tensor, cache: StackCache, patch: int, visible_from: Tensor | None = None
    ) -> Tensor:
        """Return the latents of new patches [1, rows, ...], the first of which has index ``patch``.

        ``visible_from``: see `run_cached`.
        """
        return run_cached(self.layers, self.input_projection(patch_embeddings), cache, patch, visible_from)
