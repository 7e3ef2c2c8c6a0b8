import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.blt import Blt
from fastblt.models.config import PatchingConfig
from fastblt.models.patcher import entropy
from fastblt.models.patching import Patches, closes_patch, find_patches
from fastblt.models.tokens import BOS_ID


def naive_closes(entropies: list[float], config: PatchingConfig) -> list[bool]:
    """The rule, byte by byte."""
    closes, in_patch = [], 0
    for i, value in enumerate(entropies):
        in_patch += 1
        close = i == 0 or value > config.threshold or in_patch == config.max_patch_length
        closes.append(close)
        if close:
            in_patch = 0
    return closes


rules = st.builds(
    PatchingConfig, threshold=st.just(1.5), max_patch_length=st.none() | st.integers(min_value=1, max_value=7)
)
# 1.5 itself is drawn often: the comparison is strict.
entropy_rows = st.lists(st.sampled_from([0.0, 1.0, 1.5, 1.5000001, 3.0]), min_size=1, max_size=40)


@given(entropies=entropy_rows, rule=rules)
def test_closes_equal_naive_loop(entropies: list[float], rule: PatchingConfig) -> None:
    found = closes_patch(torch.tensor([entropies], dtype=torch.float64), rule)
    assert found[0].tolist() == naive_closes(entropies, rule)


@given(entropies=st.lists(st.floats(0, 1.4), min_size=1, max_size=60), longest=st.integers(1, 9))
def test_patches_are_cut_to_longest_when_entropy_is_low(entropies: list[float], longest: int) -> None:
    closes = closes_patch(torch.tensor([entropies]), PatchingConfig(1.5, longest))
    lengths = find_patches(closes).lengths[0].tolist()
    assert lengths[0] == 1
    assert all(n == longest for n in lengths[1:-1])
    assert lengths[-1] <= longest


def test_rows_of_a_batch_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    entropies = torch.from_numpy(rng.uniform(0, 2, size=(5, 33)))
    rule = PatchingConfig(1.5, 3)
    found = closes_patch(entropies, rule)
    for row in range(5):
        assert found[row].tolist() == naive_closes(entropies[row].tolist(), rule)


def test_entropies_are_not_changed() -> None:
    entropies = torch.zeros(1, 4)
    closes_patch(entropies, PatchingConfig(1.5, 2))
    assert (entropies == 0).all()


@given(rows=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4))
def test_patches_equal_naive_loop(rows: list[list[bool]]) -> None:
    closes = torch.tensor(rows)
    closes[:, 0] = True
    found = find_patches(closes)
    positions, valid = found.members
    for row, flags in enumerate(closes.tolist()):
        patches: list[list[int]] = [[]]
        latents, closed = [], 0
        for i, close in enumerate(flags):
            patches[-1].append(i)
            closed += close
            latents.append(closed - 1)
            if close:
                patches.append([])
        patches = [p for p in patches if p]
        assert found.latent_index[row].tolist() == latents
        assert found.lengths[row].tolist()[: len(patches)] == [len(p) for p in patches]
        assert not any(found.lengths[row].tolist()[len(patches) :])
        for index, patch in enumerate(patches):
            assert int(found.starts[row, index]) == patch[0]
            assert positions[row, index][valid[row, index]].tolist() == patch
        assert not valid[row, len(patches) :].any()


def same_patches(a: Patches, b: Patches, count: int) -> bool:
    return torch.equal(a.lengths[:, :count], b.lengths[:, :count]) and torch.equal(a.latent_index, b.latent_index)


@pytest.mark.parametrize("pad_to", [2, 5, 16])
def test_padding_adds_empty_patches_only(pad_to: int) -> None:
    closes = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.4
    closes[:, 0] = True
    plain, padded = find_patches(closes), find_patches(closes, pad_to)
    count = plain.lengths.shape[1]
    assert padded.lengths.shape[1] == -(-count // pad_to) * pad_to
    assert same_patches(plain, padded, count)
    assert not padded.lengths[:, count:].any()


@examples(60)
@given(
    text=st.lists(st.integers(2, 259), min_size=1, max_size=60),
    other=st.lists(st.integers(2, 259), min_size=1, max_size=20),
    data=st.data(),
)
def test_earlier_closes_stay_when_later_bytes_change(
    tiny_model: Blt, text: list[int], other: list[int], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(0, len(text)))
    one = tiny_model.segment(torch.tensor([[BOS_ID, *text]]))
    two = tiny_model.segment(torch.tensor([[BOS_ID, *text[:keep], *other]]))
    assert torch.equal(one.closes[0, : keep + 1], two.closes[0, : keep + 1])
    assert torch.equal(one.latent_index[0, : keep + 1], two.latent_index[0, : keep + 1])


def test_random_patcher_uses_both_rules(tiny_model: Blt) -> None:
    """Otherwise the tests that segment with it would prove little."""
    ids = torch.randint(4, 260, (4, 200), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS_ID
    high = entropy(tiny_model.patcher(ids)) > tiny_model.config.patching.threshold
    closes = tiny_model.segment(ids).closes
    assert 0.1 < high.float().mean() < 0.6
    assert (closes & ~high)[:, 1:].sum() > 10


def test_entropy_is_in_nats_over_all_ids() -> None:
    assert entropy(torch.zeros(260)).item() == pytest.approx(np.log(260))
    logits = torch.full((260,), -torch.inf)
    logits[:2] = 0.0
    finite = logits.clamp(min=-1e4)
    assert entropy(finite).item() == pytest.approx(np.log(2))
    assert entropy(torch.zeros(260, dtype=torch.bfloat16)).dtype == torch.float32
