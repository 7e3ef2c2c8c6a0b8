import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastblt.models.blt import Blt
from fastblt.models.decoder import BlockRows
from fastblt.models.tokens import BOS_ID, MASK_ID
from fastblt.models.training.batches import IGNORE, sample_windows
from fastblt.models.training.corpus import Split
from fastblt.models.training.evaluation import block_quality, count_accepted, draft_acceptance, evaluate


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(4, 260, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = BOS_ID
    return ids


def greedy_bytes(model: Blt, prefix: list[int], count: int) -> list[int]:
    """The model's own continuation, every byte from a run over the whole sequence."""
    ids = list(prefix)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(prefix) :]


def drafted_bytes(model: Blt, prefix: list[int], count: int) -> list[int]:
    """As above, but every drafted row reads the latent that is the newest before the prefix's last byte is seen."""
    known = model.segment(torch.tensor([prefix[:-1]])).latent_index[0].tolist()
    ids = list(prefix)
    for _ in range(count):
        index = known + [known[-1]] * (len(ids) - len(known))
        logits, _ = model(torch.tensor([ids]), latent_index=torch.tensor([index]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prefix) :]


def common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


@pytest.mark.parametrize("length", [25, 40])
def test_draft_acceptance_equals_slow_loop(either_model: Blt, length: int) -> None:
    k = 8
    prefix = random_ids(12, length)
    accepted = []
    for row in prefix.tolist():
        draft = drafted_bytes(either_model, row, k)
        accepted.append(common_prefix(draft, greedy_bytes(either_model, row, k)))
    assert 0 < sum(accepted) < 12 * k, "neither nothing nor everything, or the test proves little"
    found = draft_acceptance(either_model, prefix, k)
    assert found.keys() == {"acceptance_s4", "acceptance_s8"}
    assert found["acceptance_s8"] == pytest.approx(sum(accepted) / 12 / 8)
    assert found["acceptance_s4"] == pytest.approx(sum(min(a, 4) for a in accepted) / 12 / 4)


def test_accepted_bytes_are_counted_up_to_the_first_difference(either_model: Blt) -> None:
    length, k = 20, 6
    prefix = random_ids(4, length, seed=3)
    own = torch.tensor([greedy_bytes(either_model, row, k) for row in prefix.tolist()])
    for row, wrong in enumerate([0, 2, 5]):
        own[row, wrong] = 4 + (int(own[row, wrong]) - 3) % 256
    found = count_accepted(either_model, torch.cat([prefix, own], dim=1), length)
    assert found.tolist() == [0, 2, 5, 6]


def test_bytes_after_the_first_difference_are_not_accepted_even_if_right(tiny_model: Blt) -> None:
    prefix = random_ids(1, 20)[0].tolist()
    wrong = 4 + (greedy_bytes(tiny_model, prefix, 1)[0] - 3) % 256
    rest = greedy_bytes(tiny_model, [*prefix, wrong], 5)
    assert count_accepted(tiny_model, torch.tensor([[*prefix, wrong, *rest]]), 20).tolist() == [0]


@pytest.fixture(scope="module")
def text(make_split: Callable[[list[bytes]], Split]) -> Split:
    rng = np.random.default_rng(0)
    return make_split([rng.bytes(700), b"some words, again and again; " * 30])


def test_evaluation_is_the_same_at_every_call_and_complete(either_model: Blt, text: Split) -> None:
    one = evaluate(either_model, text, windows=10, length=256)
    assert one == evaluate(either_model, text, windows=10, length=256)
    expected = {"bits_per_byte", "bytes_per_patch", "acceptance_s4", "acceptance_s8"}
    if either_model.config.block_size:
        expected |= {"masked_accuracy_t50", "masked_accuracy_t100", "acceptance_dv"}
    assert one.keys() == expected
    assert all(math.isfinite(v) for v in one.values())
    assert one != evaluate(either_model, text, windows=10, length=256, seed=1)


def test_bits_per_byte_is_the_mean_over_all_targets(tiny_model: Blt, text: Split) -> None:
    """Windows differ in their number of targets: the mean is over bytes, not over windows."""
    ids, targets = sample_windows(text, 10, 256, np.random.default_rng(0))
    nats, count, closes = 0.0, 0, 0
    for row, wanted in zip(ids, targets, strict=True):
        logp = tiny_model(row.unsqueeze(0))[0][0].log_softmax(-1)
        seen = wanted != IGNORE
        nats -= float(logp[seen].gather(1, wanted[seen].unsqueeze(1)).sum())
        count += int(seen.sum())
        closes += int(tiny_model.segment(row.unsqueeze(0)).closes.sum())
    found = evaluate(tiny_model, text, windows=10, length=256)
    assert found["bits_per_byte"] == pytest.approx(nats / count / math.log(2), rel=1e-5)
    assert found["bytes_per_patch"] == pytest.approx(10 * 256 / closes)


def test_block_quality_equals_slow_loop_when_all_is_masked(tiny_model: Blt) -> None:
    size, length = tiny_model.config.block_size, 30
    ids = random_ids(10, length + size, seed=5)
    right, accepted = 0, 0
    for row in ids.tolist():
        prefix = torch.tensor([row[:length]])
        patches = tiny_model.segment(prefix)
        last = patches.latent_index[:, -1:]
        rows = BlockRows(torch.full((1, 1, size), MASK_ID), torch.tensor([[length]]), last)
        guess = tiny_model(prefix, patches, rows)[1][0].argmax(-1).tolist()
        right += sum(g == t for g, t in zip(guess, row[length:], strict=True))
        accepted += common_prefix(guess, greedy_bytes(tiny_model, row[:length], size))
    found = block_quality(tiny_model, ids, np.random.default_rng(0))
    assert found["masked_accuracy_t100"] == pytest.approx(right / 10 / size)
    assert found["acceptance_dv"] == pytest.approx(accepted / 10 / size)
    assert 0.0 <= found["masked_accuracy_t50"] <= 1.0


def test_evaluation_works_when_documents_are_short(tiny_model: Blt, make_split: Callable[[list[bytes]], Split]) -> None:
    """No document is long enough for a teacher-forced draft: the other figures are still due."""
    found = evaluate(tiny_model, make_split([b"short document"] * 5), windows=4, length=256)
    assert math.isfinite(found["bits_per_byte"])
