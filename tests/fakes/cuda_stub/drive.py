"""Runs bundles over the stub: ``python -m fakes.cuda_stub.drive PLAN RESULTS``, with the variables of `environment`.

PLAN is JSON: a list of objects with ``bundle`` (folder), ``methods`` (names), ``new_bytes`` (of a generation) and
``timed`` (how many generations to time, without a log), and, where texts grow together, ``streams`` (how many; their
notes have that number behind the folder). RESULTS receives a `Driven` for each of them. The log has a
line ``note bundle FOLDER`` and, for each method, ``note begin METHOD`` and ``note end METHOD`` around all rounds but
the first, which reads the prompt.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from fakes.cuda_stub.runtime_api import install

api = install()

from fakes.cuda_stub.scripted_onnxruntime import ScriptedOnnxRuntime  # noqa: E402

from fastblt.models.tokens import EOS_ID, encode  # noqa: E402
from fastblt.runtime.backends.gpu.backend import DeviceBackend  # noqa: E402
from fastblt.runtime.backends.gpu.loading import load_onnxruntime  # noqa: E402
from fastblt.runtime.batching.round_scheduler import RoundScheduler  # noqa: E402
from fastblt.runtime.blt_runtime import BltRuntime  # noqa: E402

MAX_BYTES = 384


class Generated(TypedDict):
    """Counts what one method did after its first round."""

    bytes: int
    rounds: int
    microseconds: float
    """Host time of the fastest of the timed generations; 0 where none was timed."""


class Driven(TypedDict):
    """Describes one bundle that was run."""

    providers: list[str]
    caches: dict[str, list[int]]
    """Address and size of the memory that holds each part's caches, and the size of a single one, in bytes."""
    methods: dict[str, Generated]


def prompt(documents: bool) -> np.ndarray:
    """Return token ids, int64 [n]: BOS and a text; with ``documents``, an EOS in the middle."""
    ids = [*encode(b"in the beginning"), *([EOS_ID] if documents else []), *encode(b" was the word", bos=False)]
    return np.array(ids, dtype=np.int64)


def load(bundle: Path, streams: int = 1) -> BltRuntime:
    """Load a bundle with ONNX Runtime's CUDA provider."""
    api.note(f"bundle {bundle}{f' x {streams}' if streams > 1 else ''}")
    return BltRuntime(load_onnxruntime(bundle, "cuda", MAX_BYTES, ort=ScriptedOnnxRuntime(api), sequences=streams))


def generate(runtime: BltRuntime, method: str, new_bytes: int, note: str = "") -> Generated:
    """Generate once; ``note`` names the rounds after the first in the log."""
    stream = runtime.stream(prompt(runtime.config.document_masks), new_bytes, method=method)
    next(stream)
    if note:
        api.note(f"begin {note}")
    # Time of this thread, which queues everything: other work on the machine counts less.
    began, count, rounds = time.thread_time(), 0, 0
    for chunk in stream:
        rounds += 1
        count += len(chunk.data)
    seconds = time.thread_time() - began
    if note:
        api.note(f"end {note}")
    return Generated(bytes=count, rounds=rounds, microseconds=seconds * 1e6)


def generate_together(
    runtime: BltRuntime, scheduler: RoundScheduler, method: str, new_bytes: int, note: str = ""
) -> Generated:
    """Let as many texts grow together as the scheduler takes; ``note`` names the rounds after the prompts in the log.

    A round is one of all texts. Their lengths differ, so that their patches close at different times.
    """
    ids = prompt(runtime.config.document_masks)
    lengths = range(scheduler.size)
    streams = [runtime.stream(np.append(ids, ids[1 : 1 + more]), new_bytes, method=method) for more in lengths]
    scheduler.step(streams)
    if note:
        api.note(f"begin {note}")
    began, count, rounds = time.thread_time(), 0, 0
    while all(stream.open for stream in streams):
        rounds += 1
        for grown in scheduler.step(streams):
            if grown.error is not None:
                raise grown.error
            count += len(grown.chunk.data) if grown.chunk is not None else 0
    seconds = time.thread_time() - began
    if note:
        api.note(f"end {note}")
    for stream in streams:
        stream.close()
    return Generated(bytes=count, rounds=rounds, microseconds=seconds * 1e6)


def run(bundle: Path, methods: list[str], new_bytes: int, timed: int, streams: int = 1) -> Driven:
    """Generate with each method: twice with a log, so that every graph has been recorded, then as often as timed."""
    runtime = load(bundle, streams)
    scheduler = RoundScheduler(runtime.backend, streams)

    def write(method: str, note: str = "") -> Generated:
        if streams > 1:
            return generate_together(runtime, scheduler, method, new_bytes, note)
        return generate(runtime, method, new_bytes, note)

    backend = runtime.backend
    assert isinstance(backend, DeviceBackend)
    caches = {}
    for part, graph in backend.slots[0].graphs.items():
        size = graph.caches.lane_bytes
        caches[part] = [graph.caches.address(0), graph.caches.lanes * size, size]
    found = Driven(providers=list(backend.providers), caches=caches, methods={})
    for method in methods:
        write(method, f"first {method}")
        generated = write(method, method)
        api.log(False)
        times = [write(method)["microseconds"] for _ in range(timed)]
        api.log(True)
        found["methods"][method] = Generated(**{**generated, "microseconds": min(times, default=0)})
    return found


def main(plan: Path, results: Path) -> None:
    entries: list[dict[str, Any]] = json.loads(plan.read_text())
    found = []
    for entry in entries:
        found.append(run(**{**entry, "bundle": Path(entry["bundle"])}))
        gc.collect()  # or the memory of one bundle is freed in the log of the next
    api.flush()
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
