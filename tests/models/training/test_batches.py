import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from fastblt.models.decoder import BlockRows
from fastblt.models.patching import Patches, find_patches
from fastblt.models.tokens import BOE_ID, BOS_ID, EOS_ID, MASK_ID, decode
from fastblt.models.training.batches import IGNORE, corrupt_blocks, place_blocks, sample_windows, stale_latent_index
from fastblt.models.training.corpus import Split
from fastblt.models.training.recipe import TrainConfig

MakeSplit = Callable[[list[bytes]], Split]
SIZE = 4
LENGTH = 64


def recipe(**changes: float) -> TrainConfig:
    return TrainConfig("tiny", budget_seconds=1, patcher_seconds=1, **changes)  # type: ignore[arg-type]


def random_patches(batch: int, length: int, seed: int = 0) -> Patches:
    closes = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.3
    closes[:, 0] = True
    return find_patches(closes, pad_to=16)


def text_windows(make_split: MakeSplit, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Windows with long and short documents, the latter padded."""
    rng = np.random.default_rng(seed)
    split = make_split([rng.bytes(500), rng.bytes(20), rng.bytes(200), rng.bytes(30)])
    return sample_windows(split, count, LENGTH, rng)


@examples(50)
@given(
    documents=st.lists(st.binary(max_size=40), min_size=1, max_size=5).filter(any),
    length=st.integers(2, 24),
    seed=st.integers(0, 99),
)
def test_windows_are_pieces_of_one_document(
    make_split: MakeSplit, documents: list[bytes], length: int, seed: int
) -> None:
    ids, targets = sample_windows(make_split(documents), 6, length, np.random.default_rng(seed))
    assert ids.shape == targets.shape == (6, length)
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        # The tokens of a window and the last target are one sequence, cut after its end of document.
        known = [t for t in wanted if t != IGNORE]
        sequence = [row[0], *known]
        assert wanted == known + [IGNORE] * (length - len(known))
        assert row[: len(sequence)] == sequence[:length]
        assert all(t == BOE_ID for t in row[len(sequence) :])
        assert sequence[0] == BOS_ID
        body = sequence[1:]
        assert all(t >= 4 for t in body[:-1])
        text = decode(body)
        assert text
        if body[-1] == EOS_ID:
            assert any(d.endswith(text) for d in documents)
        else:
            assert len(body) == length
            assert any(text in d for d in documents)
        # No window is shorter than it has to be.
        if len(known) < length:
            assert text in documents


def test_documents_are_drawn_in_proportion_to_their_length(make_split: MakeSplit) -> None:
    split = make_split([b"a" * 900, b"", b"b" * 100])
    ids, _ = sample_windows(split, 4000, 8, np.random.default_rng(0))
    share = float((ids[:, 1] == ord("b") + 4).float().mean())
    assert share == pytest.approx(0.1, abs=0.02)


def test_windows_are_a_function_of_the_seed(make_split: MakeSplit) -> None:
    one, two, other = (text_windows(make_split, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])


Blocks = tuple[BlockRows, Tensor, Tensor]


def make_blocks(make_split: MakeSplit, config: TrainConfig, batch: int = 16) -> tuple[Tensor, Patches, Blocks]:
    ids, targets = text_windows(make_split, batch)
    patches = random_patches(batch, LENGTH)
    rng = np.random.default_rng(7)
    return ids, patches, corrupt_blocks(place_blocks(targets, patches, SIZE, config, rng), config, rng)


def test_block_rows_show_or_hide_the_bytes_at_their_positions(make_split: MakeSplit) -> None:
    ids, patches, (rows, wanted, weights) = make_blocks(make_split, recipe(blocks=64))
    count = 64 * LENGTH // 256
    assert rows.ids.shape == (16, count, SIZE)
    assert wanted.shape == weights.shape == (16, count * SIZE)
    shown, positions = rows.ids.flatten(1), rows.positions
    assert int(rows.starts.min()) >= 1
    assert int(positions.max()) <= LENGTH - 1
    hidden = wanted != IGNORE
    true = ids.gather(1, positions)
    assert (shown[hidden] == MASK_ID).all()
    assert torch.equal(wanted[hidden], true[hidden])
    seen = shown != MASK_ID
    assert torch.equal(shown[seen], true[seen])
    # What is neither shown nor predicted lies past the end of the document.
    rest = ~hidden & ~seen
    assert rest.any()
    assert (true[rest] == BOE_ID).all()
    assert torch.equal(rows.latent_index, patches.latent_index.gather(1, rows.starts - 1))


def test_blocks_read_the_last_latent_closed_before_them(make_split: MakeSplit) -> None:
    """The latent of a block holds no byte of it: the clean twin must not come in through the global."""
    _, patches, (rows, _, _) = make_blocks(make_split, recipe(blocks=64))
    for row in range(rows.starts.shape[0]):
        for start, latent in zip(rows.starts[row].tolist(), rows.latent_index[row].tolist(), strict=True):
            end = int(patches.starts[row, latent] + patches.lengths[row, latent])
            assert end <= start
            following = int(patches.lengths[row, latent + 1])
            assert end + following > start, "an earlier patch than the last closed one"


@pytest.mark.parametrize(("mid_patch", "low", "high"), [(0.0, 1.0, 1.0), (1.0, 0.1, 0.6)])
def test_blocks_start_at_patches_or_anywhere_as_the_recipe_says(
    make_split: MakeSplit, mid_patch: float, low: float, high: float
) -> None:
    _, patches, (rows, _, _) = make_blocks(make_split, recipe(blocks=128, mid_patch=mid_patch))
    at_patch = patches.closes.gather(1, rows.starts - 1).float().mean()
    assert low <= float(at_patch) <= high


def test_weights_decay_along_a_block(make_split: MakeSplit) -> None:
    _, _, (_, _, even) = make_blocks(make_split, recipe(blocks=64))
    _, _, (_, _, weights) = make_blocks(make_split, recipe(blocks=64, position_decay=2.0))
    factors = (weights / even).unflatten(1, (-1, SIZE))
    assert torch.allclose(factors, factors[:1, :1].expand_as(factors))
    first = factors[0, 0]
    assert float(first.mean()) == pytest.approx(1)
    assert torch.allclose(first[1:] / first[:-1], torch.full((SIZE - 1,), math.exp(-0.5)))


def test_blocks_are_masked_wholly_when_the_recipe_says_so(make_split: MakeSplit) -> None:
    _, _, (rows, _, weights) = make_blocks(make_split, recipe(fully_masked=1.0))
    assert (rows.ids == MASK_ID).all()
    assert (weights == 1.0).all()


def test_mask_rates_of_a_window_are_stratified(make_split: MakeSplit) -> None:
    _, _, (_, _, weights) = make_blocks(make_split, recipe(blocks=40, fully_masked=0.0))
    rates = 1.0 / weights.unflatten(1, (-1, SIZE))
    assert (rates == rates[..., :1]).all()
    strata = ((rates[..., 0] - 0.1) / 0.9).sort(1).values * 10
    assert torch.equal(strata.floor(), torch.arange(10.0).expand(16, -1))


def test_weighted_masking_is_unbiased(make_split: MakeSplit) -> None:
    """Each byte of a block is hidden with its probability t, so hidden / t is 1 on average."""
    hits, cells = 0.0, 0
    rng = np.random.default_rng(0)
    split = make_split([rng.bytes(5000)])
    for _ in range(20):
        _, targets = sample_windows(split, 32, LENGTH, rng)
        patches = random_patches(32, LENGTH)
        _, wanted, weights = corrupt_blocks(
            place_blocks(targets, patches, SIZE, recipe(blocks=40), rng), recipe(blocks=40), rng
        )
        hits += float((weights * (wanted != IGNORE)).sum())
        cells += wanted.numel()
    # Standard error: the variance of hidden / t is 1 / t - 1, about 1.3 on average, over 25,600 cells.
    assert hits / cells == pytest.approx(1.0, abs=0.03)


def test_blocks_are_a_function_of_the_seed(make_split: MakeSplit) -> None:
    one, two = (make_blocks(make_split, recipe())[2] for _ in range(2))
    assert torch.equal(one[0].ids, two[0].ids)
    assert torch.equal(one[0].starts, two[0].starts)


def test_stale_stretches_read_the_latent_from_before_them() -> None:
    patches = random_patches(8, 256)
    found = stale_latent_index(patches, recipe(stale_segments=3), np.random.default_rng(0))
    assert found is not patches.latent_index
    assert (found <= patches.latent_index).all(), "a latent that is not closed yet"
    assert torch.equal(found[:, :2], patches.latent_index[:, :2])
    stale = found != patches.latent_index
    assert 0.01 < float(stale.float().mean()) < 0.2
    for row in range(8):
        for i in stale[row].nonzero().flatten().tolist():
            # A draft of at most 16 bytes: the latent was the last closed one not long ago.
            recent = patches.latent_index[row, max(0, i - 16) : i].tolist()
            assert int(found[row, i]) in recent


def test_stale_stretch_is_four_to_sixteen_rows_that_read_what_the_row_before_reads() -> None:
    """Every byte is a patch here: row i would read latent i."""
    patches = find_patches(torch.ones(200, 256, dtype=torch.bool))
    found = stale_latent_index(patches, recipe(stale_segments=1), np.random.default_rng(0))
    age = patches.latent_index - found
    sizes = []
    for row in range(200):
        stale = age[row].nonzero().flatten().tolist()
        assert stale == list(range(stale[0], stale[-1] + 1))
        assert age[row, stale].tolist() == list(range(1, len(stale) + 1))
        sizes.append(len(stale))
    assert set(sizes) == set(range(4, 17))


def test_nothing_is_stale_when_the_recipe_says_so() -> None:
    patches = random_patches(4, 64)
    found = stale_latent_index(patches, recipe(stale_segments=0), np.random.default_rng(0))
    assert torch.equal(found, patches.latent_index)
