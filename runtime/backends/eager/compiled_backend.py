"""Loads a model for ``torch.compile``: the baseline of whoever wants speed and stays within PyTorch."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from fastblt.models.blt import Blt
from fastblt.runtime.backends.eager.compilation import Compiler
from fastblt.runtime.backends.eager.compiled_sequence import CompiledSequence
from fastblt.runtime.backends.eager.loading import load_eager
from fastblt.runtime.backends.eager.torch_backend import TorchBackend
from fastblt.runtime.backends.protocol import CapacityError


class CompiledBackend(TorchBackend):
    """Runs `fastblt.models.blt.Blt` compiled; `load` is the constructor for users. See `TorchBackend`.

    Compiled programs hold the addresses of their caches: there is one sequence, compiled when the model is loaded.

    Args:
        model: in eager mode, on the device that it is to run on.
        max_bytes: longest prompt plus new bytes.
        threads: of one operator, for the whole process; None: as many as suit the model.
        compiler: compiles its parts; None: that of this machine's processor or GPU.
        sequences: most at once; None: one.

    Raises:
        CapacityError: more than one sequence is asked for, or the memory does not suffice.
        CompilerError: nothing can be compiled here.
    """

    name = "eager-compiled"

    def __init__(
        self,
        model: Blt,
        max_bytes: int,
        threads: int | None = None,
        compiler: Compiler | None = None,
        sequences: int | None = None,
    ) -> None:
        if sequences not in (None, 1):
            raise CapacityError(f"sequences: found {sequences}, expected 1 with backend {self.name}")
        super().__init__(model, max_bytes, threads, 1)
        self._sequence = CompiledSequence(self, compiler or Compiler(self.device))
        self._lent = threading.Lock()

    @classmethod
    def load(
        cls, folder: Path, provider: str, max_bytes: int, threads: int | None, *, sequences: int | None = None
    ) -> CompiledBackend:
        """Load a checkpoint of any layout, or the weights inside a bundle; arguments and errors as in `load_eager`."""
        return cls(load_eager(folder, provider), max_bytes, threads, sequences=sequences)

    def new_sequence(self) -> CompiledSequence:
        """Implement `Backend.new_sequence`."""
        if not self._lent.acquire(blocking=False):
            raise CapacityError(f"sequences: found one that is open, expected none: backend {self.name} has one")
        return self._sequence

    def give_back(self) -> None:
        """Take back the sequence, which has been closed; taking it back again does nothing."""
        with suppress(RuntimeError):
            self._lent.release()
