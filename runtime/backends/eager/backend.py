"""Loads a model into eager PyTorch: a baseline that latency is compared with, and in fp32 the reference."""

from __future__ import annotations

from pathlib import Path

from fastblt.models.blt import Blt
from fastblt.runtime.backends.eager.loading import load_eager
from fastblt.runtime.backends.eager.sequence import EagerSequence
from fastblt.runtime.backends.eager.torch_backend import TorchBackend
from fastblt.runtime.backends.open_sequences import OpenSequences


class EagerBackend(TorchBackend):
    """Runs `fastblt.models.blt.Blt` step by step, in the type that its weights have; see `TorchBackend`.

    `load` is the constructor for users. As a baseline it computes in the bundle's dtype, as the backend that it is
    compared with does; as a reference (``exact``) it computes in fp32.
    """

    name = "eager"

    def __init__(self, model: Blt, max_bytes: int, threads: int | None = None, sequences: int | None = None) -> None:
        super().__init__(model, max_bytes, threads, sequences)
        self.open_sequences = OpenSequences[EagerSequence]()

    @classmethod
    def load(
        cls,
        folder: Path,
        provider: str,
        max_bytes: int,
        threads: int | None,
        *,
        exact: bool = False,
        sequences: int | None = None,
    ) -> EagerBackend:
        """Load a checkpoint of any layout, or the weights inside a bundle; arguments and errors as in `load_eager`."""
        return cls(load_eager(folder, provider, exact=exact), max_bytes, threads, sequences)

    def new_sequence(self) -> EagerSequence:
        """Implement `Backend.new_sequence`."""
        return self.open_sequences.make(self.sequences, lambda: EagerSequence(self))
