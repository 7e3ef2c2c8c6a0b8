"""Measures what launches, waits and small copies cost on a GPU; no model is needed.

``python -m fastblt.runtime.measure.gpu_campaign.latency FILE`` writes JSON. The driver is called the way that
`fastblt.runtime.backends.gpu` calls it, and the times are the host's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastblt.runtime.backends.gpu.cuda import Cuda, DeviceMemory, PinnedMemory, Stream, load_api
from fastblt.runtime.measure.gpu_campaign.kernel_chain import kernel_chain
from fastblt.runtime.measure.report import write_json

#: Measurements of each figure.
SAMPLES = 200
#: Launches between two waits, where what is measured is the device or the queuing.
BURST = 64
#: Nodes of the longer one of two graphs whose difference is the cost of a node.
NODES = 129
#: Bytes of a small copy: about what a call of the decoder sends and reads back.
SIZE = 256


def measure_latencies(api: Any, samples: int = SAMPLES) -> dict[str, Any]:
    """Measure all figures.

    Args:
        api: ``cuda.bindings.runtime``, or a stand-in.
        samples: measurements of each figure.

    Returns:
        ``microseconds``: median and 95th percentile of each figure; ``left_out``: why others are missing, by name.

    Raises:
        CudaError: there is no usable GPU, or a call fails.
    """
    cuda = Cuda(api)
    stream, memory, pinned = Stream(cuda), DeviceMemory(cuda, 2 * SIZE), PinnedMemory(cuda, SIZE)

    def copy(times: int) -> None:
        for _ in range(times):
            stream.copy(memory.address + SIZE, memory.address, SIZE)

    def waited(queue: Callable[[], None]) -> dict[str, float]:
        def work() -> None:
            queue()
            stream.synchronize()

        return _each(work, samples)

    left_out: dict[str, str] = {}
    found = {
        "wait, nothing queued": _each(stream.synchronize, samples),
        "event, recorded and waited for": _event(stream, samples),
        f"upload of {SIZE} bytes and wait": waited(lambda: stream.upload(memory.address, pinned.address, SIZE)),
        f"download of {SIZE} bytes and wait": waited(lambda: stream.download(pinned.address, memory.address, SIZE)),
        f"upload of {SIZE} bytes, queued": _queued(
            lambda: stream.upload(memory.address, pinned.address, SIZE), stream, samples
        ),
    }
    graphs = {times: stream.capture(lambda times=times: copy(times)) for times in (1, NODES)}  # type: ignore[misc]
    one, many = graphs[1], graphs[NODES]
    if one is None or many is None:
        left_out["graph launch"] = "found that copies cannot be recorded"
    else:
        found["graph launch, queued"] = _queued(lambda: stream.launch(one), stream, samples)
        found["graph launch and wait"] = waited(lambda: stream.launch(one))
        found["copy node of a graph"] = _per_node(
            lambda: stream.launch(one), lambda: stream.launch(many), stream, samples
        )
    try:
        shorter, longer = kernel_chain(stream, 1), kernel_chain(stream, NODES)
        found["kernel node of a graph (ONNX Runtime)"] = _per_node(shorter, longer, stream, samples)
    except (ModuleNotFoundError, ValueError, RuntimeError) as error:
        left_out["kernel node of a graph (ONNX Runtime)"] = " ".join(str(error).split())
    return {"samples": samples, "microseconds": found, "left_out": left_out}


def _summary(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile, in microseconds."""
    median, high = np.percentile(np.array(seconds) * 1e6, (50, 95))
    return {"median": round(float(median), 3), "p95": round(float(high), 3)}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _each(work: Callable[[], object], samples: int) -> dict[str, float]:
    """Return the time of work that waits by itself."""
    for _ in range(3):
        work()
    return _summary([_timed(work) for _ in range(samples)])


def _queued(work: Callable[[], object], stream: Stream, samples: int) -> dict[str, float]:
    """Return the host's time for queuing work once, the mean of a burst; the wait after the burst does not count."""
    seconds = []
    for _ in range(max(samples // 4, 1)):
        seconds.append(_timed(lambda: [work() for _ in range(BURST)]) / BURST)
        stream.synchronize()
    return _summary(seconds)


def _per_node(one: Callable[[], object], many: Callable[[], object], stream: Stream, samples: int) -> dict[str, float]:
    """Return the time of a further node: the difference of graphs of 1 and of `NODES` nodes, launched back to back."""

    def launches(work: Callable[[], object]) -> None:
        for _ in range(8):
            work()
        stream.synchronize()

    def burst(work: Callable[[], object]) -> float:
        launches(work)
        return _timed(lambda: launches(work)) / 8

    return _summary([(burst(many) - burst(one)) / (NODES - 1) for _ in range(max(samples // 4, 1))])


def _event(stream: Stream, samples: int) -> dict[str, float]:
    """Return the time of an event that is recorded on an idle stream and waited for."""
    cuda = stream.cuda
    event = cuda("cudaEventCreateWithFlags", cuda.api.cudaEventDisableTiming)

    def work() -> None:
        cuda("cudaEventRecord", event, stream.handle)
        cuda("cudaEventSynchronize", event)

    try:
        return _each(work, samples)
    finally:
        cuda("cudaEventDestroy", event)


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), measure_latencies(load_api()))
