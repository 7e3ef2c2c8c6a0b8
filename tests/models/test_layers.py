import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastblt.models.config import StackConfig
from fastblt.models.layers import (
    Block,
    CrossAttention,
    FeedForward,
    RMSNorm,
    attention,
    causal_attend,
    causal_mask,
    rope_table,
    rotate,
)

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randomize(module: torch.nn.Module, rng: torch.Generator) -> None:
    for p in module.parameters():
        torch.nn.init.uniform_(p, -0.5, 0.5, generator=rng)
        p.requires_grad_(False)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, seen: list[list[int]]) -> Tensor:
    """Row by row and head by head over the keys that each row sees; [rows, heads, head_dim] each."""
    out = torch.zeros_like(q)
    for row, keys in enumerate(seen):
        for head in range(q.shape[1]):
            scores = torch.stack([q[row, head] @ k[j, head] for j in keys]) / math.sqrt(q.shape[2])
            weights = scores.exp() / scores.exp().sum()
            out[row, head] = sum(w * v[j, head] for w, j in zip(weights, keys, strict=True))
    return out.flatten(1)


def test_rms_norm_equals_formula(rng: torch.Generator) -> None:
    norm = RMSNorm(6, eps=0.1)
    randomize(norm, rng)
    x = torch.randn(2, 3, 6, generator=rng)
    for b in range(2):
        for i in range(3):
            row = x[b, i]
            expected = row / math.sqrt(float((row**2).sum()) / 6 + 0.1) * norm.weight
            torch.testing.assert_close(norm(x)[b, i], expected)


def test_rms_norm_is_computed_in_fp32_when_input_is_half() -> None:
    norm = RMSNorm(4, eps=1e-5)
    x = torch.full((1, 4), 60_000.0, dtype=torch.float16)  # its square is not representable
    assert norm(x).dtype == torch.float16
    assert torch.equal(norm(x), torch.ones(1, 4, dtype=torch.float16))


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_rotates_interleaved_pairs_as_published(theta: float, rng: torch.Generator) -> None:
    positions = torch.tensor([0, 1, 2, 17, 300])
    heads, width = 2, 8
    x = torch.randn(1, len(positions), heads, width, generator=rng)
    found = rotate(x, rope_table(positions, width, theta))
    for row, position in enumerate(positions.tolist()):
        for head in range(heads):
            for i in range(width // 2):
                angle = position * theta ** (-2 * i / width)
                a, b = x[0, row, head, 2 * i].item(), x[0, row, head, 2 * i + 1].item()
                expected = [
                    a * math.cos(angle) - b * math.sin(angle),
                    a * math.sin(angle) + b * math.cos(angle),
                ]
                assert found[0, row, head, 2 * i : 2 * i + 2].tolist() == pytest.approx(expected, abs=1e-4)


def test_scores_depend_on_distance_only_when_rotated(rng: torch.Generator) -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=rng)

    def score(at: int, key_at: int) -> float:
        rows = [rotate(x, rope_table(torch.tensor([p]), 16, 1e4)) for x, p in ((q, at), (k, key_at))]
        return float((rows[0] * rows[1]).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
def test_causal_mask_is_the_window_that_includes_the_row(window: int | None) -> None:
    mask = causal_mask(7, window, CPU)
    for i in range(7):
        for j in range(7):
            assert bool(mask[i, j]) == (j <= i and (window is None or j > i - window))


@pytest.mark.parametrize("window", [None, 1, 4, 9])
def test_attention_equals_naive_loop(window: int | None, rng: torch.Generator) -> None:
    length = 9
    q, k, v = torch.randn(3, 1, length, 2, 4, generator=rng)
    seen = [[j for j in range(i + 1) if window is None or j > i - window] for i in range(length)]
    found = causal_attend(length, window, CPU)(q, k, v)[0]
    torch.testing.assert_close(found, naive_attention(q[0], k[0], v[0], seen))


@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize("chunks", [2, 3, 5])
def test_banded_attention_equals_masked_attention(window: int, chunks: int, rng: torch.Generator) -> None:
    length = window * chunks  # only then is the band used
    q, k, v = torch.randn(3, 3, length, 2, 4, generator=rng)
    found = causal_attend(length, window, CPU)(q, k, v)
    torch.testing.assert_close(found, attention(q, k, v, causal_mask(length, window, CPU)))


def test_feed_forward_gates_with_its_first_rows(rng: torch.Generator) -> None:
    ffn = FeedForward(4, 6)
    randomize(ffn, rng)
    x = torch.randn(3, 4, generator=rng)
    w1, w3 = ffn.w13.weight[:6], ffn.w13.weight[6:]
    expected = (F.silu(x @ w1.T) * (x @ w3.T)) @ ffn.w2.weight.T
    torch.testing.assert_close(ffn(x), expected)


def test_block_equals_published_formula(rng: torch.Generator) -> None:
    config = StackConfig(dim=8, layers=1, heads=2, ffn_dim=12, rope_theta=100.0, norm_eps=1e-2)
    block = Block(config)
    randomize(block, rng)
    length = 5
    x = torch.randn(1, length, 8, generator=rng)
    rope = rope_table(torch.arange(length), 4, 100.0)
    found = block(x, rope, causal_attend(length, None, CPU))

    normed = block.attention_norm(x[0])
    q, k, v = ((normed @ w.T).view(length, 2, 4) for w in block.wqkv.weight.split(8))
    q, k = (rotate(part.unsqueeze(0), rope)[0] for part in (q, k))
    attended = naive_attention(q, k, v, [list(range(i + 1)) for i in range(length)])
    middle = x[0] + attended @ block.wo.weight.T
    expected = middle + block.feed_forward(block.ffn_norm(middle))
    torch.testing.assert_close(found[0], expected)


def test_cross_attention_adds_its_input_twice(rng: torch.Generator) -> None:
    rows, queries, keys, dim, heads = 3, 2, 4, 8, 2
    cross = CrossAttention(dim, heads, eps=1e-2)
    randomize(cross, rng)
    x = torch.randn(rows, queries, dim, generator=rng)
    tokens = torch.randn(rows, keys, dim, generator=rng)
    mask = torch.rand(rows, 1, 1, keys, generator=rng) < 0.5
    mask[..., 0] = True
    found = cross(x, *cross.keys_values(tokens), mask)
    wk, wv = cross.wkv.weight.split(dim)
    for row in range(rows):
        seen = mask[row, 0, 0].nonzero().flatten().tolist()
        q = (cross.norm_q(x[row]) @ cross.wq.weight.T).view(queries, heads, -1)
        normed = cross.norm_kv(tokens[row])
        k, v = ((normed @ w.T).view(keys, heads, -1) for w in (wk, wv))
        attended = naive_attention(q, k, v, [seen] * queries)
        torch.testing.assert_close(found[row], 2 * x[row] + attended @ cross.wo.weight.T)


def test_cross_attention_sees_every_key_when_there_is_no_mask(rng: torch.Generator) -> None:
    cross = CrossAttention(8, 2, eps=1e-5)
    randomize(cross, rng)
    x, tokens = torch.randn(1, 1, 8, generator=rng), torch.randn(1, 3, 8, generator=rng)
    k, v = cross.keys_values(tokens)
    torch.testing.assert_close(cross(x, k, v, None), cross(x, k, v, torch.ones(1, 1, 1, 3, dtype=torch.bool)))
