"""What runs a graph on memory that is bound to it: an engine of TensorRT, or a session of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from fastblt.runtime.bundle.manifest import GraphSpec


class Bound(NamedTuple):
    """A tensor's memory in one shape class."""

    shape: tuple[int, ...]
    address: int


class Launch(Protocol):
    """A graph with memory bound to all of its tensors."""

    def run(self) -> None:
        """Queue one run on the stream; nothing waits."""
        ...


class Executor(Protocol):
    """One loaded graph."""

    spec: GraphSpec
    slots: int
    """Slots of its caches."""
    pool_slots: int
    """Slots of its pool; 0 where it has none."""

    def visible_slots(self, live: int) -> int:
        """Slots to bind so that the first ``live`` ones can be seen: all of them where their number is fixed."""
        ...

    def bind(self, tensors: Mapping[str, Bound]) -> Launch:
        """Bind memory to every input and output.

        Raises:
            BundleError: one is missing, or the graph does not take its shape.
        """
        ...
