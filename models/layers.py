"""Provides the building blocks that every part of the model shares: RMSNorm, RoPE, SwiGLU blocks, cross-attention.

A block does not know where its keys come from. It projects its rows and calls ``attend(q, k, v)``; a whole
sequence passes an ``attend`` that masks (training, reference); an incremental step passes one that appends to a
cache and reads it back. Both paths therefore run the same modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastblt.models.config import StackConfig

#: Maps ``(q, k, v)``, each [batch, rows, heads, head_dim], to the attention output [batch, rows, heads * head_dim].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """Computes x * rsqrt(mean(x^2) + eps) * weight over the last axis, in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` [..., dim]; the result has the dtype of ``x``."""
        wide = x.float()
        if not torch.is_grad_enabled():
            # One kernel instead of five: faster for the few rows of a step; its backward pass is slower.
            return F.rms_norm(wide, (wide.shape[-1],), self.weight.float(), self.eps).to(x.dtype)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """Return ``theta**(-2i / head_dim)``, float32 [head_dim / 2]."""
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rope_table(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return the rotations of interleaved pairs (2i, 2i+1) by ``position * theta**(-2i / head_dim)``.

    Args:
        positions: integers, shape [..., rows].
        head_dim: width of a head.
        theta: base.

    Returns:
        complex64, shape [..., rows, 1, head_dim / 2] (the 1 broadcasts over heads).
    """
    angles = positions.float().unsqueeze(-1) * rope_frequencies(head_dim, theta).to(positions.device)
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(-2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply the rotations of `rope_table` to ``x`` [..., rows, heads, head_dim].

    A table may also be real, float32 [..., rows, 1, head_dim / 2, 2] with cosines first (``view_as_real`` of the
    other): ``torch.compile`` generates no code for complex numbers.
    """
    if not table.is_complex():
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = table.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        q: [batch, rows, heads, head_dim].
        k: keys, [batch, keys, heads, head_dim].
        v: values, like ``k``.
        mask: bool, broadcastable to [batch, heads, rows, keys], True where a row sees a key; None: everything.
        causal: instead of a mask, row i sees keys up to i.

    Returns:
        [batch, rows, heads * head_dim].
    """
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=causal
    )
    return out.transpose(1, 2).flatten(2)


def causal_attend(length: int, window: int | None, device: torch.device, visible_from: Tensor | None = None) -> Attend:
    """Return an ``attend`` for ``length`` rows that see each other: row i sees key j if ``i - window < j <= i``.

    Args:
        length: rows.
        window: None: no limit.
        device: of the rows.
        visible_from: int64 [batch, length], first key of each row's document, a second limit; None: 0.
    """
    if visible_from is not None:
        key = torch.arange(length, device=device)
        inside = causal_mask(length, window, device) & (key >= visible_from.unsqueeze(-1))
        return lambda q, k, v: attention(q, k, v, inside.unsqueeze(1))
    if window is None or length <= window:
        return lambda q, k, v: attention(q, k, v, None, causal=True)
    if length % window == 0:
        return lambda q, k, v: _banded_attention(q, k, v, window)
    mask = causal_mask(length, window, device)
    return lambda q, k, v: attention(q, k, v, mask)


def keeping(attend: Attend, kept: list[tuple[Tensor, Tensor]]) -> Attend:
    """Return an ``attend`` that also appends the keys and values of its rows to ``kept``."""

    def attend_and_keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.append((k, v))
        return attend(q, k, v)

    return attend_and_keep


def attend_beside(keys: Tensor, values: Tensor, mask: Tensor) -> Attend:
    """Return an ``attend`` whose rows see other rows, of which keys and values exist, and then each other.

    Args:
        keys: of the other rows, [batch, length, heads, head_dim].
        values: like ``keys``.
        mask: bool, broadcastable to [batch, heads, rows, length + rows].
    """
    return lambda q, k, v: attention(q, torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1), mask)


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Compute windowed causal attention in chunks of ``window`` rows, each of which sees two chunks of keys."""
    chunks = q.shape[1] // window
    first = attention(q[:, :window], k[:, :window], v[:, :window], None, causal=True)
    row = torch.arange(window, device=q.device).unsqueeze(1)
    key = torch.arange(2 * window, device=q.device).unsqueeze(0)
    mask = (key > row) & (key <= row + window)

    def pairs(x: Tensor) -> Tensor:
        each = x.unflatten(1, (chunks, window))
        return torch.cat([each[:, :-1], each[:, 1:]], dim=2).flatten(0, 1)

    rest = q[:, window:].unflatten(1, (chunks - 1, window)).flatten(0, 1)
    out = attention(rest, pairs(k), pairs(v), mask)
    return torch.cat([first, out.view(q.shape[0], -1, out.shape[-1])], dim=1)


def causal_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return bool [length, length]: row i sees key j if ``i - window < j <= i``."""
    row = torch.arange(length, device=device).unsqueeze(1)
    key = torch.arange(length, device=device).unsqueeze(0)
    seen = key <= row
    return seen if window is None else seen & (key > row - window)


class FeedForward(nn.Module):
    """Computes SwiGLU, ``w2(silu(gate) * up)``; gate and up are one matrix (rows: gate first)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w13 = nn.Linear(dim, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to ``x`` [..., dim]; the result has the same shape."""
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


class Block(nn.Module):
    """Holds one pre-norm transformer block; queries, keys and values come from one matrix (rows: q, k, v)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim)

    def forward(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        """Run the block on rows ``x`` [batch, rows, dim] with rotations ``rope`` (see `rope_table`)."""
        return self.finish(x, attend(*self.project(x, rope)))

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of rows, [batch, rows, heads, head_dim] each."""
        qkv = self.wqkv(self.attention_norm(x)).unflatten(-1, (3 * self.heads, -1))
        qk, v = qkv.split([2 * self.heads, self.heads], dim=-2)
        q, k = rotate(qk, rope).split(self.heads, dim=-2)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output for its input and what attention made of it, [batch, rows, dim] both."""
        x = x + self.wo(attended)
        return x + self.feed_forward(self.ffn_norm(x))


class CrossAttention(nn.Module):
    """Computes cross-attention without RoPE and with a double residual: ``2 x + wo attn(norm_q(x), norm_kv(tokens))``.

    The doubling is part of the published model: the module adds its input and its caller adds it again.

    Args:
        dim: width.
        heads: attention heads.
        eps: of the norms.
        own_keys: whether it can compute keys and values; False: it reads those of another module.
    """

    def __init__(self, dim: int, heads: int, eps: float, *, own_keys: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q = RMSNorm(dim, eps)
        if own_keys:
            self.norm_kv = RMSNorm(dim, eps)
        self.wq = nn.Linear(dim, dim, bias=False)
        if own_keys:
            self.wkv = nn.Linear(dim, 2 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [..., dim], of tokens [..., dim]."""
        k, v = self.wkv(self.norm_kv(tokens)).chunk(2, dim=-1)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Let each row's own few queries see that row's own few keys.

        Args:
            x: queries, [rows, queries, dim].
            k: from `keys_values`, [rows, keys, dim].
            v: like ``k``.
            mask: bool, [rows, 1, queries or 1, keys], or None.

        Returns:
            [rows, queries, dim].
        """
        q = self.wq(self.norm_q(x)).unflatten(-1, (self.heads, -1))
        k, v = k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))
        # Training on a CPU has thousands of rows with a few keys each, for which matrix products take twice as long.
        few = _by_elements if torch.is_grad_enabled() and x.device.type == "cpu" else _by_matrices
        return 2 * x + self.wo(few(q, k, v, mask).flatten(2))


def _by_matrices(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention [rows, queries, heads, head_dim] of each row's own queries to its own keys, shaped alike."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    scores = (q @ k.transpose(-1, -2)).float() * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def _by_elements(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the same from products and sums of elements."""
    scores = (q.unsqueeze(2) * k.unsqueeze(1)).sum(-1) * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, 0].unsqueeze(-1), float("-inf"))
    return (scores.softmax(2).unsqueeze(-1) * v.unsqueeze(1)).sum(2)
