"""Provides texts that grow together on a stand-in GPU, and bundles whose GPU backends can batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.tokens import EOS_ID, encode
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.batching.together import generate_together
from fastblt.runtime.blt_runtime import BltRuntime

MAX_BYTES = 600
#: A prompt, and how many bytes follow it.
Text = tuple[np.ndarray, int]


class Written(NamedTuple):
    """Holds what follows a prompt, and the log-probability of each of its bytes."""

    data: bytes
    logprobs: tuple[float, ...]


class Form(NamedTuple):
    """Describes a bundle and what runs it."""

    checkpoint: str
    """Name of the fixture."""
    kind: str
    """``tensorrt-rtx`` or ``onnxruntime``."""
    options: dict[str, Any]
    """Of the export."""


_INSIDE = {"hash_tables": "graph"}
FORMS = {
    "BLT-D engines": Form("tiny_checkpoint", "tensorrt-rtx", {}),
    "BLT-D sessions": Form("tiny_checkpoint", "onnxruntime", {}),
    "BLT-D fp16 sessions": Form("tiny_checkpoint", "onnxruntime", {"dtype": "fp16"}),
    "BLT engines": Form("tiny_encoder_checkpoint", "tensorrt-rtx", _INSIDE),
    "BLT sessions, tables on the host": Form("tiny_encoder_checkpoint", "onnxruntime", {}),
    "lowered BLT engines": Form("tiny_encoder_checkpoint", "tensorrt-rtx", {"lowered": True, **_INSIDE}),
    "draft decoder, engines": Form("tiny_mixed_checkpoint", "tensorrt-rtx", {}),
    "documents, sessions": Form("documents_checkpoint", "onnxruntime", {}),
}


def load_form(form: Form, bundle: Path, gpu: FakeCuda, sequences: int, row_floor: int = 1) -> DeviceBackend:
    """Load a bundle on the stand-in GPU."""
    if form.kind == "onnxruntime":
        ort = FakeOnnxRuntime(gpu)
        return loading.load_onnxruntime(bundle, "cuda", MAX_BYTES, ort=ort, sequences=sequences, row_floor=row_floor)
    return loading.load_tensorrt(bundle, form.kind, MAX_BYTES, row_floor, sequences)


def check_same(found: Sequence[Written], expected: Sequence[Written], tolerance: float) -> None:
    """Compare bytes, and log-probabilities: kernels for one row and for several differ in their last bits."""
    assert [each.data for each in found] == [each.data for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=tolerance)


def texts_of(count: int, seed: int = 0, longest: int = 40) -> list[Text]:
    """Return prompts of random bytes, with an end of document inside, and how many bytes follow each of them."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = encode(random.bytes(int(random.integers(12, longest))))
        ids[len(ids) // 2] = EOS_ID
        found.append((ids, int(random.integers(4, 22))))
    return found


def write_alone(runtime: BltRuntime, texts: Sequence[Text], *methods: str) -> list[Written]:
    """Continue texts one after the other, with each method in turn."""
    pairs = zip(texts, itertools.cycle(methods), strict=False)
    made = [runtime.generate(text, size, method=method, logprobs=True) for (text, size), method in pairs]
    return [Written(each.data, each.logprobs) for each in made]


def write_together(
    runtime: BltRuntime, scheduler: RoundScheduler, texts: Sequence[Text], *methods: str
) -> list[Written]:
    """Continue texts in rounds that they share, with each method in turn."""
    pairs = zip(texts, itertools.cycle(methods), strict=False)
    openers = [partial(runtime.stream, text, size, method=method, logprobs=True) for (text, size), method in pairs]
    return [Written(each.data, each.logprobs) for each in generate_together(scheduler, openers)]


@contextmanager
def rounds_of(runtime: BltRuntime) -> Iterator[RoundScheduler]:
    """Return a scheduler for as many streams as the backend has slots; it is closed in the end."""
    scheduler = RoundScheduler(runtime.backend, runtime.backend.sequences)
    try:
        yield scheduler
    finally:
        scheduler.close()
