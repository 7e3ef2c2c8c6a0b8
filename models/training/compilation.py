"""Compiles the layers of a model for training on a CPU: what surrounds matrix products becomes one loop each.

Attention is left as it is: what a row sees changes from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastblt.models.layers import Block, CrossAttention


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Let every block and cross-attention of a model run compiled code wherever gradients are recorded.

    Compilation happens at the first steps, takes about a minute, and needs a C++ compiler.

    Args:
        model: is changed.
        backend: of ``torch.compile``; ``aot_eager`` traces and differentiates alike, and generates no code.
    """
    project = torch.compile(_project, dynamic=True, backend=backend)
    finish = torch.compile(Block.finish, dynamic=True, backend=backend)
    cross = torch.compile(CrossAttention.forward, dynamic=True, backend=backend)
    for module in model.modules():
        if isinstance(module, Block):
            # PyTorch generates no code for complex numbers: rotations are passed as real ones.
            _replace(module, "project", lambda block, x, rope: project(block, x, torch.view_as_real(rope)))
            _replace(module, "finish", finish)
        elif isinstance(module, CrossAttention):
            _replace(module, "forward", cross)


def _project(block: Block, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return Block.project(block, x, rope)


def _replace(module: nn.Module, name: str, compiled: Callable[..., Any]) -> None:
    """Make a method run compiled code where gradients are recorded, and its own elsewhere."""
    own = getattr(type(module), name)

    def method(self: nn.Module, *arguments: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else own)(self, *arguments)

    setattr(module, name, MethodType(method, module))
