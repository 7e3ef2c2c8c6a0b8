"""Defines the entropy patcher, a small causal byte language model whose uncertainty closes patches."""

from __future__ import annotations

from torch import Tensor, nn

from fastblt.models.cache import StackCache
from fastblt.models.config import StackConfig
from fastblt.models.layers import Block, RMSNorm
from fastblt.models.stack import run_cached, run_sequence


class Patcher(nn.Module):
    """Predicts the next byte; always fp32, because lower precision moves patch boundaries."""

    def __init__(self, config: StackConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, vocab_size, bias=False)

    def forward(self, ids: Tensor, visible_from: Tensor | None = None) -> Tensor:
        """Return logits [batch, length, vocab] of the next token for whole sequences ``ids`` [batch, length].

        ``visible_from``, int64 [batch, length]: first position that each row may see; None: 0.
        """
        x = run_sequence(self.layers, self.tok_embeddings(ids), self.config, visible_from)
        return self.output(self.norm(x))

    def step(self, ids: Tensor, cache: StackCache, position: int, visible_from: Tensor | None = None) -> Tensor:
        """Return the entropies [1, rows], nats, of the token after each of ``ids`` [1, rows] from ``position`` on.

        ``visible_from``: see `run_cached`.
        """
        x = run_cached(self.layers, self.tok_embeddings(ids), cache, position, visible_from)
        return entropy(self.output(self.norm(x)))


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of the softmax over the last axis, in fp32."""
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
