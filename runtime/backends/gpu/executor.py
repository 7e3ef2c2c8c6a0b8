"""Defines what runs a graph on memory that is bound to it: an engine of TensorRT, or a session of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from fastblt.runtime.bundle.manifest import BATCH, GraphSpec


class Bound(NamedTuple):
    """Holds a tensor's shape in one shape class, and the device address of its memory."""

    shape: tuple[int, ...]
    address: int


class Launch(Protocol):
    """Runs a graph that has memory bound to all of its tensors."""

    def run(self) -> None:
        """Queue the graph on the stream once, without waiting."""
        ...

    def recordable(self) -> bool:
        """Return whether `record` may be called; not before the first `run`."""
        ...

    def record(self) -> None:
        """Queue the graph while a caller captures the stream."""
        ...


class Executor(Protocol):
    """Holds one loaded graph."""

    spec: GraphSpec
    slots: int
    """Number of slots of each cache."""
    pool_slots: int
    """Number of slots of the pool; 0 where the graph has none."""
    usual_pool_slots: int
    """Number of slots of the pool that is bound unless the open patch needs more."""

    batch_rows: int
    """Most rows of each sequence in a call of several."""

    def visible_slots(self, live: int) -> int:
        """Return how many slots to bind so that rows can see the first ``live`` ones; all where the number is fixed."""
        ...

    def accepts(self, size: str, number: int) -> bool:
        """Return whether a call of any number of rows takes ``number`` for the named size of the graph's tensors."""
        ...

    def batch_problem(self, together: int) -> str | None:
        """Return why a call cannot hold up to ``together`` sequences, and what mends it; None: it can."""
        ...

    def bind(self, tensors: Mapping[str, Bound]) -> Launch:
        """Bind memory to every input and output.

        Args:
            tensors: shape and device address of each, by name.

        Raises:
            BundleError: a tensor is missing, or the graph does not accept its shape.
        """
        ...


def takes_batches(spec: GraphSpec) -> bool:
    """Return whether a graph's tensors have an axis for the sequences of a call; those of earlier versions do not."""
    return any(BATCH in tensor.shape for tensor in spec.inputs)


def one_sequence_problem(path: Path) -> str:
    """Return the message for a graph without that axis."""
    return (
        f"{path}: found a graph of an earlier version, which takes one sequence at a time, expected one that takes "
        "several: write the bundle again with fastblt export"
    )
