"""Measures the host time of the GPU runtime with a driver that does nothing.

Usage: ``python tests/fakes/host_time.py BUNDLE``.
What remains is the time that Python takes per byte on any GPU: a lower bound of the time per byte.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fakes.cuda import FakeCuda, Status

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.cuda import Cuda, Stream
from fastblt.runtime.backends.gpu.executor import Bound
from fastblt.runtime.backends.gpu.sliding import cache_slots, pool_slots
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import GraphSpec
from fastblt.runtime.sequence.requests import draft
from fastblt.runtime.sequence.session import Session

MAX_BYTES, BYTES, DRAFTS = 1000, 400, 60


class IdleCuda(FakeCuda):
    """Lets every call succeed immediately without doing anything."""

    def _allocate(self, kind: str, size: int) -> tuple[Status, int]:
        """Allocate zeros, since results that nobody computes must still be tokens and probabilities."""
        status, address = super()._allocate(kind, size)
        ctypes.memset(address, 0, size)
        return status, address

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Status]:
        return (Status.cudaSuccess,)


class IdleExecutor:
    """Launches a graph that computes nothing."""

    def __init__(self, spec: GraphSpec, slots: int, pool: int, stream: Stream) -> None:
        self.spec, self.slots, self.pool_slots, self.usual_pool_slots, self.stream = spec, slots, pool, pool, stream

    def visible_slots(self, live: int) -> int:
        return self.slots

    def accepts(self, size: str, number: int) -> bool:
        return True

    def bind(self, tensors: Mapping[str, Bound]) -> IdleExecutor:
        return self

    def run(self) -> None:
        self.stream.cuda("cudaGraphLaunch", 1, self.stream.handle)

    def recordable(self) -> bool:
        return True

    def record(self) -> None:
        pass


def idle_backend(bundle: Path) -> DeviceBackend:
    opened, stream = Bundle.open(bundle), Stream(Cuda(IdleCuda()))
    config = opened.config
    executors = {}
    for part, spec in opened.manifest.graphs.items():
        pool = pool_slots(config, MAX_BYTES) if part == "encoder" else 0
        executors[part] = IdleExecutor(spec, cache_slots(config.graph_stacks[part], MAX_BYTES), pool, stream)
    return DeviceBackend(opened, executors, stream, MAX_BYTES, "idle")


def begin(backend: DeviceBackend) -> Session:
    session = Session(backend)
    session.append(encode(b"hello world", bos=False))
    session.score()
    return session


def autoregressive(backend: DeviceBackend) -> float:
    """Return microseconds per byte, one byte after the other."""
    session = begin(backend)
    began = time.perf_counter()
    for _ in range(BYTES):
        session.append([100])
        session.score()
    return (time.perf_counter() - began) / BYTES * 1e6


def drafting(backend: DeviceBackend) -> float:
    """Return microseconds per drafted byte, with eight bytes per draft."""
    session = begin(backend)
    session.append([100])
    began = time.perf_counter()
    for _ in range(DRAFTS):
        session.run(draft(8))
    return (time.perf_counter() - began) / DRAFTS / 8 * 1e6


def main(bundle: Path) -> None:
    backend = idle_backend(bundle)
    measurements: dict[str, Callable[[DeviceBackend], float]] = {"ar": autoregressive, "draft": drafting}
    for name, measure in measurements.items():
        print(f"{name}: {min(measure(backend) for _ in range(7)):.1f} us of host time per byte")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
