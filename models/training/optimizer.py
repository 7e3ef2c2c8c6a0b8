"""Optimizes matrices with Muon and everything else with AdamW.

Muon (Jordan et al., 2024) orthogonalizes each matrix's momentum by Newton-Schulz iteration. The iteration is our own
and runs in fp32: PyTorch's runs in bf16, which is slow on CPUs. Fused matrices (q|k|v, gate|up, k|v) are
orthogonalized part by part, and parts of equal shape are iterated as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastblt.models.training.shared_tensors import is_shared, like, whole

#: Quintic Newton-Schulz coefficients of the Muon reference.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T by Newton-Schulz iteration for each of ``matrices`` [count, rows, columns], rows <= columns.

    With twice as many columns as rows, all steps are taken on the Gram matrices, which are smaller: a step multiplies
    a matrix X by M, a polynomial of X X^T, and the next Gram matrix is M X X^T M.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    if x.shape[2] < 2 * x.shape[1]:
        for _ in range(_STEPS):
            gram = x @ x.transpose(1, 2)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    gram = x @ x.transpose(1, 2)
    product = None
    for _ in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        gram = factor @ gram @ factor
        product = factor if product is None else factor @ product
    assert product is not None
    return product @ x


def fused_parts(name: str) -> int:
    """Return how many matrices a parameter contains, stacked by rows."""
    return {"wqkv": 3, "w13": 2, "wkv": 2}.get(name.split(".")[-2], 1)


class Muon(torch.optim.Optimizer):
    """Applies Muon to named matrices; ``lr`` is the size of an update in units of an orthogonal matrix."""

    def __init__(self, params: Iterable[tuple[str, nn.Parameter]], lr: float, momentum: float = 0.95) -> None:
        named = list(params)
        self.parts = {p: fused_parts(n) for n, p in named}
        super().__init__([p for _, p in named], {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            shared: list[tuple[Tensor, Tensor]] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                # Of a matrix that processes share, each computes the whole direction and applies its part.
                update = whole(p.grad.lerp(momentum, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                change = p
                if is_shared(p):
                    change = torch.zeros_like(update)
                    shared.append((p, change))
                for target, part in zip(change.chunk(self.parts[p]), update.chunk(self.parts[p]), strict=True):
                    by_shape[part.shape].append((target, part))
            for shape, pairs in by_shape.items():
                self._apply(shape, pairs, group["lr"])
            for p, change in shared:
                p.add_(like(change, p))

    @staticmethod
    def _apply(shape: torch.Size, pairs: list[tuple[Tensor, Tensor]], lr: float) -> None:
        rows, columns = shape
        stacked = torch.stack([part for _, part in pairs])
        flip = rows > columns
        ortho = orthogonalize(stacked.transpose(1, 2) if flip else stacked)
        ortho = ortho.transpose(1, 2) if flip else ortho
        for (target, _), direction in zip(pairs, ortho, strict=True):
            target.add_(direction, alpha=-lr * max(1.0, rows / columns) ** 0.5)


def build_optimizers(
    module: nn.Module, matrix_lr: float, embedding_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices inside the network, and AdamW for embeddings, norms and output matrices."""
    matrices: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        inner = p.ndim == 2 and "embeddings" not in name and not name.endswith("output.weight")
        (matrices if inner else others).append((name, p))
    muon = Muon(matrices, lr=matrix_lr)
    for group in muon.param_groups:
        group["weight_decay"] = weight_decay
    adamw = torch.optim.AdamW(
        [p for _, p in others], lr=embedding_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay
    )
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def schedule(progress: float, warmup: float, hold: float) -> float:
    """Return the factor of the peak learning rate at ``progress`` in [0, 1]: linear up, flat, linear down to zero."""
    if progress < warmup:
        return progress / warmup
    return 1.0 if progress < hold else max(0.0, (1.0 - progress) / (1.0 - hold))
