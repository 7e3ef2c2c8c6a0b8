"""Counts the parameters of each part of a model, given only its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastblt.models.tokens import MASK_ID

if TYPE_CHECKING:
    from fastblt.models.config import BltConfig, StackConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Holds the parameters of each part; those in the traffic formula of arXiv 2605.08044 exclude embeddings."""

    patcher: int
    """Entropy model without its embedding."""
    encoder: int
    """Encoder blocks and patch cross-attention."""
    global_transformer: int
    """Global blocks and input projection."""
    decoder: int
    """Decoder blocks, cross-attention, patch projection, norm and output matrix."""
    byte_embeddings: int
    """Embedding tables of patcher, encoder, decoder and draft decoder."""
    hash_embeddings: int
    """Hash n-gram tables."""
    draft: int = 0
    """Draft decoder without its embedding: matrices of its own or what is added to the decoder's, and norms."""

    @property
    def total(self) -> int:
        """Return the sum over all parts."""
        return (
            self.patcher
            + self.encoder
            + self.global_transformer
            + self.decoder
            + self.byte_embeddings
            + self.hash_embeddings
            + self.draft
        )


def _blocks(stack: StackConfig) -> int:
    return stack.layers * (4 * stack.dim**2 + 3 * stack.dim * stack.ffn_dim + 2 * stack.dim)


def _cross_attention(dim: int) -> int:
    return 4 * dim**2 + 2 * dim


def _draft(config: BltConfig) -> int:
    """Return the parameters of the draft decoder: that of the decoder without what computes keys of latents."""
    stack = config.decoder
    matrices = [(stack.dim, stack.dim), (stack.dim, stack.dim)]
    matrices += [(3 * stack.dim, stack.dim), (stack.dim, stack.dim)]
    matrices += [(2 * stack.ffn_dim, stack.dim), (stack.dim, stack.ffn_dim)]
    sizes = stack.layers * matrices + [(config.vocab_size, stack.dim)]
    rank = config.draft_rank
    weights = sum(rows * width if rank is None else rank * (rows + width) for rows, width in sizes)
    return weights + (3 * stack.layers + 1) * stack.dim


def count_parameters(config: BltConfig) -> ParameterCounts:
    """Return the number of parameters of every part of ``config``."""
    patcher, encoder, decoder = config.patcher, config.encoder, config.decoder
    latent_dim = config.global_transformer.dim
    head = decoder.dim + config.vocab_size * decoder.dim
    own_rows = 0 if config.decoder_input == "encoder" else MASK_ID + 1
    return ParameterCounts(
        patcher=0 if patcher is None else _blocks(patcher) + patcher.dim + config.vocab_size * patcher.dim,
        encoder=_blocks(encoder) + encoder.dim * config.patch_dim + _cross_attention(encoder.dim),
        global_transformer=_blocks(config.global_transformer)
        + (config.patch_dim * latent_dim if config.has_global_projection else 0),
        decoder=_blocks(decoder)
        + decoder.layers * _cross_attention(decoder.dim)
        + latent_dim * config.cross_attn_k * decoder.dim
        + head,
        byte_embeddings=config.vocab_size * ((patcher.dim if patcher else 0) + encoder.dim) + own_rows * decoder.dim,
        hash_embeddings=config.hash.tables * config.hash.rows * encoder.dim,
        draft=_draft(config) if config.has_draft else 0,
    )
