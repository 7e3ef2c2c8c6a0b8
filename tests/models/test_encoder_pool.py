import math

import pytest
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.encoder import Encoder
from fastblt.models.hashing import hash_rows
from fastblt.models.layers import RMSNorm
from fastblt.models.patching import find_patches
from fastblt.models.tokens import BOS_ID


def norm(x: Tensor, module: RMSNorm) -> Tensor:
    return x / math.sqrt(float((x * x).mean()) + module.eps) * module.weight


def slow_pool(encoder: Encoder, states: Tensor) -> Tensor:
    """Embedding of the patch whose byte states are ``states`` [bytes, dim], step by step as published."""
    cross, dim, heads = encoder.cross_attention, states.shape[1], encoder.config.heads
    width = dim // heads
    highest = torch.stack([max(states[:, d]) for d in range(dim)])
    wk, wv = cross.wkv.weight[:dim], cross.wkv.weight[dim:]
    keys = [wk @ norm(h, cross.norm_kv) for h in states]
    values = [wv @ norm(h, cross.norm_kv) for h in states]
    pieces = []
    for j in range(encoder.cross_attn_k):
        query = encoder.patch_projection.weight[j * dim : (j + 1) * dim] @ highest
        q = cross.wq.weight @ norm(query, cross.norm_q)
        attended = torch.zeros(dim)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.stack([q[part] @ k[part] / math.sqrt(width) for k in keys])
            for weight, value in zip(scores.softmax(0), values, strict=True):
                attended[part] += weight * value[part]
        pieces.append(2 * query + cross.wo.weight @ attended)
    return torch.cat(pieces)


def random_closes(batch: int, length: int, seed: int) -> Tensor:
    closes = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.35
    closes[:, 0] = True
    return closes


@pytest.mark.parametrize("seed", range(3))
def test_pool_equals_slow_loop_over_each_patch(either_model: Blt, seed: int) -> None:
    encoder = either_model.encoder
    states = torch.randn(2, 23, encoder.config.dim, generator=torch.Generator().manual_seed(seed))
    patches = find_patches(random_closes(2, 23, seed), pad_to=8)
    found = encoder.pool(states, *patches.members)
    assert found.shape[2] == either_model.config.patch_dim
    for row in range(2):
        for index, (start, count) in enumerate(
            zip(patches.starts[row].tolist(), patches.lengths[row].tolist(), strict=True)
        ):
            if count:
                expected = slow_pool(encoder, states[row, start : start + count])
                torch.testing.assert_close(found[row, index], expected, atol=1e-5, rtol=1e-5)


def test_patch_embedding_depends_on_its_own_bytes_only(tiny_model: Blt) -> None:
    encoder = tiny_model.encoder
    states = torch.randn(1, 12, encoder.config.dim, generator=torch.Generator().manual_seed(0))
    closes = torch.zeros(1, 12, dtype=torch.bool)
    closes[0, [0, 3, 7, 8]] = True
    members = find_patches(closes).members  # bytes 0 | 1-3 | 4-7 | 8 | 9-11
    before = encoder.pool(states, *members)[0]
    for byte, patch in ((0, 0), (1, 1), (3, 1), (4, 2), (7, 2), (8, 3), (9, 4), (11, 4)):
        changed = states.clone()
        changed[0, byte] += 1.0
        differs = (encoder.pool(changed, *members)[0] - before).abs().amax(1) > 1e-6
        assert differs.nonzero().flatten().tolist() == [patch], byte


def test_patches_without_bytes_are_finite_and_pass_no_gradient(tiny_model: Blt) -> None:
    encoder = tiny_model.encoder
    closes = torch.ones(2, 6, dtype=torch.bool)
    closes[1, 1:] = False
    states = torch.randn(2, 6, encoder.config.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    patches = find_patches(closes, pad_to=8)
    pooled = encoder.pool(states, *patches.members)
    assert torch.isfinite(pooled).all()
    empty = patches.lengths == 0
    assert int(empty.sum()) == 2 + 6
    (gradient,) = torch.autograd.grad(pooled[empty].sum(), states, retain_graph=True)
    assert torch.isfinite(gradient).all()
    (gradient,) = torch.autograd.grad(pooled[~empty].sum(), states)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()


def test_embedding_is_the_plain_sum_of_byte_and_hash_rows(tiny_model: Blt) -> None:
    encoder = tiny_model.encoder
    tokens = [BOS_ID, 100, 7, 259, 4, 4, 4, 31]
    history = [0] * (encoder.hash.context - 1)
    found = encoder.embed(torch.tensor([tokens]))[0]
    rows = hash_rows(torch.tensor(history + tokens), encoder.hash)
    assert len(rows) == 2
    for i, token in enumerate(tokens):
        expected = encoder.tok_embeddings.weight[token].clone()
        for table in rows:
            expected += encoder.hash_embeddings.weight[int(table[i])]
        torch.testing.assert_close(found[i], expected)


def test_embedding_reaches_back_into_history_when_rows_are_new(tiny_model: Blt) -> None:
    encoder = tiny_model.encoder
    tokens = torch.tensor([[BOS_ID, 100, 7, 259, 4, 31, 77]])
    whole = encoder.embed(tokens)
    context = encoder.hash.context - 1
    torch.testing.assert_close(encoder.embed(tokens[:, 4:], tokens[:, 4 - context : 4]), whole[:, 4:])


def test_byte_states_are_not_normalized(tiny_model: Blt) -> None:
    """Pooling and (in BLT) the decoder read the last block's output as it is."""
    ids = torch.tensor([[BOS_ID, 50, 60, 70]])
    states, pooled = tiny_model.encoder(ids, tiny_model.segment(ids))
    scales = states.square().mean(-1)
    assert not torch.allclose(scales, torch.ones_like(scales), atol=1e-2)
    torch.testing.assert_close(pooled[0, 0], slow_pool(tiny_model.encoder, states[0, :1]), atol=1e-5, rtol=1e-5)
