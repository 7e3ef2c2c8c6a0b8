import pytest
import torch
from torch import Tensor, nn

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.training.loop import set_rates
from fastblt.models.training.optimizer import Muon, build_optimizers, fused_parts, orthogonalize, schedule


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 24), (2, 32, 96)])
def test_singular_values_are_near_one_when_orthogonalized(shape: tuple[int, int, int]) -> None:
    found = orthogonalize(gaussian(*shape))
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    # The quintic iteration aims at a band around 1, not at 1; the smallest values may need more steps.
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.65


def test_singular_vectors_are_kept_when_orthogonalized() -> None:
    matrix = gaussian(6, 10)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalize(matrix.unsqueeze(0))[0] @ v.T
    off_diagonal = turned - turned.diagonal().diag()
    assert float(off_diagonal.abs().max()) < 1e-4
    assert float(turned.diagonal().min()) > 0.0


def test_scale_of_the_gradient_does_not_matter() -> None:
    matrix = gaussian(1, 6, 10)
    torch.testing.assert_close(orthogonalize(matrix * 1e3), orthogonalize(matrix), atol=1e-4, rtol=1e-3)


def test_each_matrix_of_a_batch_is_orthogonalized_alone() -> None:
    matrices = gaussian(3, 6, 10) * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1)
    together = orthogonalize(matrices)
    for i in range(3):
        torch.testing.assert_close(together[i], orthogonalize(matrices[i : i + 1])[0])


def test_zero_gradient_gives_zero_update() -> None:
    assert (orthogonalize(torch.zeros(2, 4, 6)) == 0).all()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("decoder.layers.0.wqkv.weight", 3),
        ("encoder.layers.0.feed_forward.w13.weight", 2),
        ("encoder.cross_attention.wkv.weight", 2),
        ("decoder.layers.0.wo.weight", 1),
        ("decoder.patch_projection.weight", 1),
    ],
)
def test_fused_matrices_are_known_by_name(name: str, parts: int) -> None:
    assert fused_parts(name) == parts


def muon_step(name: str, weight: Tensor, gradient: Tensor, lr: float = 0.1, decay: float = 0.0) -> Tensor:
    p = nn.Parameter(weight.clone())
    optimizer = Muon([(name, p)], lr=lr)
    optimizer.param_groups[0]["weight_decay"] = decay
    p.grad = gradient.clone()
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize(("name", "parts"), [("x.wqkv.weight", 3), ("x.w13.weight", 2), ("x.wkv.weight", 2)])
def test_parts_of_fused_matrix_are_updated_like_matrices_of_their_own(name: str, parts: int) -> None:
    weight, gradient = gaussian(12, 5, seed=1), gaussian(12, 5, seed=2)
    fused = muon_step(name, weight, gradient)
    alone = [muon_step("x.wo.weight", w, g) for w, g in zip(weight.chunk(parts), gradient.chunk(parts), strict=True)]
    torch.testing.assert_close(fused, torch.cat(alone))
    assert not torch.allclose(fused, muon_step("x.wo.weight", weight, gradient), atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 8), (6, 12), (12, 6), (24, 6)])
def test_update_is_against_the_gradient_and_of_the_size_of_the_rate(shape: tuple[int, int]) -> None:
    weight, gradient = gaussian(*shape, seed=1), gaussian(*shape, seed=2)
    update = weight - muon_step("x.wo.weight", weight, gradient, lr=0.1)
    assert float((update * gradient).sum()) > 0
    median = float(torch.linalg.svdvals(update).median())
    assert median == pytest.approx(0.1 * max(1.0, shape[0] / shape[1]) ** 0.5, rel=0.35)


def test_weight_decay_is_apart_from_the_gradient() -> None:
    weight = gaussian(4, 4)
    found = muon_step("x.wo.weight", weight, torch.zeros(4, 4), lr=0.1, decay=0.5)
    torch.testing.assert_close(found, weight * (1 - 0.1 * 0.5))


def test_parameters_stay_when_they_have_no_gradient() -> None:
    p = nn.Parameter(gaussian(4, 4))
    before = p.detach().clone()
    Muon([("x.wo.weight", p)], lr=0.1).step()
    assert torch.equal(p, before)


def test_momentum_carries_an_earlier_gradient_on() -> None:
    p = nn.Parameter(torch.zeros(4, 4))
    optimizer = Muon([("x.wo.weight", p)], lr=0.1)
    first = gaussian(4, 4)
    p.grad = first.clone()
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.zeros(4, 4)
    optimizer.step()
    assert float(((before - p.detach()) * first).sum()) > 0


def test_muon_finds_the_minimum_of_a_quadratic() -> None:
    wanted = gaussian(6, 6)
    p = nn.Parameter(torch.zeros(6, 6))
    optimizer = Muon([("x.wo.weight", p)], lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        ((p - wanted) ** 2).sum().backward()
        optimizer.step()
    assert float((p.detach() - wanted).abs().max()) < 0.1


def test_each_parameter_has_one_optimizer_and_matrices_have_muon(tiny_config: BltConfig) -> None:
    model = Blt(tiny_config)
    model.patcher.requires_grad_(False)
    muon, adamw = build_optimizers(model, matrix_lr=0.02, embedding_lr=0.003, weight_decay=0.01)
    assert isinstance(muon, Muon)
    names = {p: n for n, p in model.named_parameters()}
    held = [{names[p] for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    assert held[0] & held[1] == set()
    assert held[0] | held[1] == {n for n in names.values() if not n.startswith("patcher.")}
    assert "decoder.layers.0.wqkv.weight" in held[0]
    assert "encoder.patch_projection.weight" in held[0]
    for name in held[1]:
        assert "norm" in name or "embeddings" in name or name.endswith("output.weight"), name
    for optimizer, lr in ((muon, 0.02), (adamw, 0.003)):
        for group in optimizer.param_groups:
            assert group["peak_lr"] == group["lr"] == lr
            assert group["weight_decay"] == 0.01


def test_rates_are_scaled_from_their_peak() -> None:
    optimizers = build_optimizers(nn.Sequential(nn.Linear(4, 4)), 0.02, 0.003, 0.0)
    for factor in (0.5, 0.1, 1.0):
        set_rates(optimizers, factor)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(group["peak_lr"] * factor)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.3, 1.0), (0.4, 1.0), (0.7, 0.5), (1.0, 0.0), (1.2, 0.0)],
)
def test_schedule_rises_holds_and_falls(progress: float, factor: float) -> None:
    assert schedule(progress, warmup=0.1, hold=0.4) == pytest.approx(factor)


def test_schedule_begins_at_the_peak_when_there_is_no_warmup() -> None:
    assert schedule(0.0, warmup=0.0, hold=0.4) == 1.0
