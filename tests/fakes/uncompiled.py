"""Stands in for ``torch.compile``: takes no time, and checks that nothing new would have to be compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastblt.runtime.backends.eager.compilation import Compiler, Program


class Uncompiled(Compiler):
    """Runs the modules as they are, but only with the shapes that they would have been compiled for."""

    def __init__(self) -> None:
        super().__init__("cpu", {})
        self.calls = 0

    def compile(self, name: str, module: nn.Module, calls: Sequence[Sequence[Tensor]], dynamic: int | None) -> Program:
        shapes = {tuple(each.shape for each in call) for call in calls}
        for call in calls:
            module(*call)

        def program(*arguments: Tensor) -> Any:
            assert tuple(each.shape for each in arguments) in shapes
            self.calls += 1
            return module(*arguments)

        return program
