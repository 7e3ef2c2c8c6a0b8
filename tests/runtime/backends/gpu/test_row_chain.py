"""A row that is decoded alone: one CUDA graph with the patcher behind it, and the same numbers as by single calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.sequence.session import Session


@pytest.mark.parametrize(
    ("captured", "row_floor", "seen"), [(True, 1, None), (False, 1, None), (True, 16, None), (True, 1, 7)]
)
def test_row_and_entropy_are_those_of_single_calls_in_one_launch(
    compiled: Callable[..., Path],
    tiny_checkpoint: Path,
    make_gpu: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    captured: bool,
    row_floor: int,
    seen: int | None,
) -> None:
    gpu = make_gpu(forbid_capture=not captured)
    backend = loading.load_tensorrt(compiled(tiny_checkpoint), "tensorrt-rtx", 1000, row_floor)
    session, copies = Session(backend), []
    sequence = session.sequence
    session.append(encode(b"what is read before", bos=False))
    session.score()
    copy = gpu.cudaMemcpy2DAsync
    monkeypatch.setattr(gpu, "cudaMemcpy2DAsync", lambda *arguments: (copies.append(1), copy(*arguments))[1])
    latent, visible_from = np.array([0]), None if seen is None else np.array([seen])
    for position, token in enumerate(encode(b" a few words", bos=False), session.length):
        ids: Any = np.array([token])
        with monkeypatch.context() as patch:
            patch.setattr(backend.slots[0].look_ahead, "_graph", None)  # so that nothing is asked ahead
            alone = sequence.run_decoder(position, ids, latent, 0, visible_from).copy()
        patcher = sequence.run_patcher(position + 1, alone.best, visible_from).tolist()
        copies.clear()
        launches, waits = gpu.launches, gpu.waits
        row = sequence.run_decoder(position, ids, latent, 0, visible_from)
        queued = gpu.launches - launches, gpu.waits - waits, len(copies)
        for field, expected in zip(row, alone, strict=True):
            np.testing.assert_array_equal(field, expected)
        assert sequence.run_patcher(position + 1, row.best, visible_from).tolist() == patcher
        assert gpu.waits - waits == 1, "the answer is known"
    assert queued == ((1, 1, 0) if captured else (0, 1, 5))


def test_first_row_after_a_warm_up_is_recorded(
    compiled: Callable[..., Path], tiny_encoder_checkpoint: Path, gpu: FakeCuda
) -> None:
    backend = loading.load_tensorrt(compiled(tiny_encoder_checkpoint, hash_tables="graph"), "tensorrt-rtx", 1000)
    backend.slots[0].decoder.warm_up()
    sequence = backend.new_sequence()
    launches, executables = gpu.launches, dict(gpu.executables)
    sequence.run_decoder(0, np.array([1]), np.array([0]))
    assert gpu.launches - launches == 1
    assert gpu.executables.keys() == executables.keys()
