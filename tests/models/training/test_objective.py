import itertools

import pytest
import torch
import torch.nn.functional as F

from fastblt.models.training.batches import IGNORE
from fastblt.models.training.objective import clean_loss, masked_loss

VOCAB = 11


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 4, VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 4), generator=torch.Generator().manual_seed(1))


def test_clean_loss_is_the_mean_over_positions_with_a_target(logits: torch.Tensor, targets: torch.Tensor) -> None:
    targets[0, 2:] = IGNORE
    nats = [
        -float(logits[b, i].log_softmax(0)[targets[b, i]])
        for b in range(2)
        for i in range(4)
        if targets[b, i] != IGNORE
    ]
    assert len(nats) == 6
    assert float(clean_loss(logits, targets)) == pytest.approx(sum(nats) / 6)


@pytest.mark.parametrize("rates", [(0.1, 0.5), (0.3, 1.0), (0.9, 0.25)])
def test_expected_masked_loss_is_the_mean_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, rates: tuple[float, float]
) -> None:
    """Exactly, by the sum over all 256 masks of two blocks with mask rates of their own."""
    rate = torch.tensor(rates).view(2, 1).expand(2, 4)
    expected, total = 0.0, 0.0
    for mask in itertools.product([False, True], repeat=8):
        hidden = torch.tensor(mask).view(2, 4)
        probability = float(torch.where(hidden, rate, 1 - rate).prod())
        loss = float(masked_loss(logits, torch.where(hidden, targets, IGNORE), 1 / rate))
        expected += probability * loss
        total += probability
    assert total == pytest.approx(1.0)
    mean = float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert expected == pytest.approx(mean, rel=1e-5)


def test_masked_loss_is_zero_with_zero_gradient_when_nothing_is_masked(logits: torch.Tensor) -> None:
    logits.requires_grad_()
    loss = masked_loss(logits, torch.full((2, 4), IGNORE), torch.full((2, 4), 10.0))
    assert float(loss.detach()) == 0.0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient == 0).all()


def test_losses_are_computed_in_fp32_when_logits_are_half(logits: torch.Tensor, targets: torch.Tensor) -> None:
    half = logits.bfloat16()
    assert clean_loss(half, targets).dtype == torch.float32
    assert float(clean_loss(half, targets)) == float(clean_loss(half.float(), targets))
    assert masked_loss(half, targets, torch.ones(2, 4)).dtype == torch.float32
