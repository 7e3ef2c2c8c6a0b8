"""What a row of a corrupted block may know: clean bytes before the block, the block itself, one latent."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.models.decoder import BlockRows, Decoder
from fastblt.models.layers import rope_table
from fastblt.models.tokens import BOS_ID, MASK_ID

LENGTH = 50
SIZE = 4
STARTS = (1, 9, 30, 46)
LATENTS = (0, 3, 7, 11)
LATENT_COUNT = 13


@dataclass(frozen=True)
class Inputs:
    """Decoder inputs, all of them random."""

    clean: Tensor
    latents: Tensor
    index: Tensor
    blocks: BlockRows

    def run(self, decoder: Decoder) -> tuple[Tensor, Tensor]:
        """Clean logits [length, vocab] and block logits [blocks, size, vocab]."""
        clean, blocks = decoder(self.clean, self.latents, self.index, self.blocks)
        assert blocks is not None
        return clean[0], blocks[0].unflatten(0, (len(STARTS), SIZE))


@pytest.fixture(scope="module")
def decoder(tiny_model: Blt) -> Decoder:
    return tiny_model.decoder


@pytest.fixture
def inputs(decoder: Decoder, tiny_model: Blt) -> Inputs:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 260, (1, len(STARTS), SIZE), generator=rng)
    ids[torch.rand(ids.shape, generator=rng) < 0.5] = MASK_ID
    return Inputs(
        torch.randn(1, LENGTH, decoder.config.dim, generator=rng),
        torch.randn(1, LATENT_COUNT, tiny_model.config.global_transformer.dim, generator=rng),
        torch.arange(LENGTH).unsqueeze(0) // 4,
        BlockRows(ids, torch.tensor([STARTS]), torch.tensor([LATENTS])),
    )


def changed_blocks(before: Tensor, after: Tensor) -> list[int]:
    """Blocks with any row that differs."""
    return ((before - after).abs().amax((1, 2)) > 1e-6).nonzero().flatten().tolist()


def test_block_sees_clean_bytes_before_its_start_only(decoder: Decoder, inputs: Inputs) -> None:
    """The clean twin of a block's own bytes, and all that follows, must not leak into it."""
    before = inputs.run(decoder)[1]
    for byte in range(LENGTH):
        clean = inputs.clean.clone()
        clean[0, byte] += torch.randn(clean.shape[2], generator=torch.Generator().manual_seed(byte))
        after = replace(inputs, clean=clean).run(decoder)[1]
        changed = changed_blocks(before, after)
        assert all(byte < STARTS[b] for b in changed), byte
        # Near bytes are seen: the byte before a block, for one, by all of its rows.
        assert all(b in changed for b, start in enumerate(STARTS) if start - 8 <= byte < start), byte
        for b, start in enumerate(STARTS):
            if byte == start - 1:
                assert ((before[b] - after[b]).abs().amax(1) > 1e-6).all()


def test_block_does_not_see_beyond_window(tiny_model: Blt, decoder: Decoder, inputs: Inputs) -> None:
    config = replace(tiny_model.config.decoder, layers=1)
    one_layer = Decoder(replace(tiny_model.config, decoder=config)).eval()
    weights = {k: v for k, v in decoder.state_dict().items() if "layers.1." not in k}
    one_layer.load_state_dict(weights)
    assert config.window is not None
    before = inputs.run(one_layer)[1]
    for byte in range(LENGTH):
        clean = inputs.clean.clone()
        clean[0, byte] += torch.randn(clean.shape[2], generator=torch.Generator().manual_seed(byte))
        after = replace(inputs, clean=clean).run(one_layer)[1]
        differs = (before - after).abs().amax(2) > 1e-6
        for b, start in enumerate(STARTS):
            for offset in range(SIZE):
                seen = start + offset - config.window < byte < start
                assert bool(differs[b, offset]) == seen, (byte, b, offset)


def test_rows_of_block_see_each_other_both_ways_and_no_other_block(decoder: Decoder, inputs: Inputs) -> None:
    before = inputs.run(decoder)[1]
    for b in range(len(STARTS)):
        for offset in range(SIZE):
            ids = inputs.blocks.ids.clone()
            ids[0, b, offset] = 77 if ids[0, b, offset] != 77 else 78
            after = replace(inputs, blocks=replace(inputs.blocks, ids=ids)).run(decoder)[1]
            assert changed_blocks(before, after) == [b]
            assert ((before[b] - after[b]).abs().amax(1) > 1e-6).all()


def test_clean_rows_do_not_see_blocks(decoder: Decoder, inputs: Inputs) -> None:
    alone, none = decoder(inputs.clean, inputs.latents, inputs.index)
    assert none is None
    torch.testing.assert_close(inputs.run(decoder)[0], alone[0], atol=1e-5, rtol=1e-5)


def test_block_reads_its_own_latent_and_no_other(decoder: Decoder, inputs: Inputs) -> None:
    # Clean rows read latents too, and blocks see clean rows: here all clean rows read latent 0.
    inputs = replace(inputs, index=torch.zeros_like(inputs.index))
    before = inputs.run(decoder)[1]
    for latent in range(1, LATENT_COUNT):
        latents = inputs.latents.clone()
        latents[0, latent] += 1.0
        after = replace(inputs, latents=latents).run(decoder)[1]
        assert changed_blocks(before, after) == [b for b, own in enumerate(LATENTS) if own == latent]


def test_block_does_not_depend_on_its_place_among_blocks(decoder: Decoder, inputs: Inputs) -> None:
    before = inputs.run(decoder)[1]
    order = [2, 0, 3, 1]
    blocks = inputs.blocks
    shuffled = BlockRows(blocks.ids[:, order], blocks.starts[:, order], blocks.latent_index[:, order])
    torch.testing.assert_close(replace(inputs, blocks=shuffled).run(decoder)[1], before[order], atol=1e-5, rtol=1e-5)


def test_block_depends_on_its_position(decoder: Decoder, inputs: Inputs) -> None:
    before = inputs.run(decoder)[1]
    starts = inputs.blocks.starts.clone()
    starts[0, 1] += 1
    after = replace(inputs, blocks=replace(inputs.blocks, starts=starts)).run(decoder)[1]
    assert changed_blocks(before, after) == [1]


def slow_block(decoder: Decoder, inputs: Inputs, block: int) -> Tensor:
    """Logits of one block: clean bytes before it and its rows in one short sequence with an explicit mask."""
    assert decoder.tok_embeddings is not None
    start, window = STARTS[block], decoder.config.window
    assert window is not None
    x = torch.cat([inputs.clean[0, :start], decoder.tok_embeddings(inputs.blocks.ids[0, block])])
    count, dim = x.shape
    heads, width = decoder.config.heads, decoder.config.head_dim
    own = [int(inputs.index[0, i]) for i in range(start)] + [LATENTS[block]] * SIZE
    rope = rope_table(torch.arange(count), width, decoder.config.rope_theta)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros(count, heads, width)
        for i in range(count):
            end = i + 1 if i < start else count
            for h in range(heads):
                scores = k[0, max(0, i - window + 1) : end, h] @ q[0, i, h] / width**0.5
                out[i, h] = scores.softmax(0) @ v[0, max(0, i - window + 1) : end, h]
        return out.view(1, count, dim)

    for cross, layer in zip(decoder.cross_layers, decoder.layers, strict=True):
        tokens = (inputs.latents[0, own] @ decoder.patch_projection.weight.T).view(count, -1, dim)
        x = cross(x.unsqueeze(1), *cross.keys_values(tokens), None).squeeze(1)
        x = layer(x.unsqueeze(0), rope, attend)[0]
    return decoder.output(decoder.norm(x))[start:]


@pytest.mark.parametrize("block", range(len(STARTS)))
def test_block_equals_explicit_short_sequence(decoder: Decoder, inputs: Inputs, block: int) -> None:
    expected = slow_block(decoder, inputs, block)
    torch.testing.assert_close(inputs.run(decoder)[1][block], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", range(len(STARTS)))
def test_cached_block_equals_block_of_whole_sequence(decoder: Decoder, inputs: Inputs, block: int) -> None:
    """Denoising over the cache of the clean prefix is the same function as training."""
    assert decoder.tok_embeddings is not None
    start = STARTS[block]
    cache = StackCache(decoder.config, LENGTH + SIZE, torch.float32, torch.device("cpu"))
    known = decoder.latent_kv(inputs.latents)
    decoder.step(inputs.clean[:, :start], known, inputs.index[:, :start], cache, 0)
    rows = decoder.tok_embeddings(inputs.blocks.ids[:, block])
    for _ in range(2):  # a block is run several times while it is denoised
        index = torch.full((1, SIZE), LATENTS[block])
        found = decoder.step(rows, known, index, cache, start, block=SIZE)
    torch.testing.assert_close(found[0], inputs.run(decoder)[1][block], atol=1e-5, rtol=1e-5)


def test_later_bytes_do_not_reach_block_through_any_part_of_the_model(tiny_model: Blt) -> None:
    """As above, through patcher, encoder and global: a block at s may depend on the bytes before s alone."""
    rng = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 260, (1, 40), generator=rng)
    ids[0, 0] = BOS_ID
    masked = torch.full((1, 1, SIZE), MASK_ID)
    for start in (1, 2, 13, 14, 15, 16, 36):
        found = []
        for seed in range(3):
            other = ids.clone()
            noise = torch.randint(4, 260, (40 - start,), generator=torch.Generator().manual_seed(seed))
            other[0, start:] = noise
            patches = tiny_model.segment(other)
            blocks = BlockRows(masked, torch.tensor([[start]]), patches.latent_index[:, start - 1 : start])
            found.append(tiny_model(other, patches, blocks)[1])
        for logits in found[1:]:
            torch.testing.assert_close(logits, found[0], atol=1e-5, rtol=1e-5)


def test_decoder_without_embedding_refuses_blocks(tiny_encoder_model: Blt) -> None:
    decoder = tiny_encoder_model.decoder
    blocks = BlockRows(torch.full((1, 1, SIZE), MASK_ID), torch.tensor([[1]]), torch.tensor([[0]]))
    clean = torch.zeros(1, 5, decoder.config.dim)
    latents = torch.zeros(1, 1, tiny_encoder_model.config.global_transformer.dim)
    with pytest.raises(AssertionError, match=r"\[MASK\] row"):
        decoder(clean, latents, torch.zeros(1, 5, dtype=torch.int64), blocks)
