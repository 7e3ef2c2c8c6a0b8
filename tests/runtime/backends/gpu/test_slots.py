"""Slots of a GPU: texts in different ones do not see each other, however their calls interleave."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.requests import draft, score_with_block
from fastblt.runtime.sequence.session import Session

SLOTS = 4
#: What follows random bytes is random, so that no two texts are alike.
TEXTS = [np.random.default_rng(seed).bytes(150) for seed in range(SLOTS)]
METHODS = {"embedding": ("ar", "s:4", "d:4@0.7", "dv:4@one"), "encoder": ("ar", "s:4")}
Load = Callable[..., DeviceBackend]


@pytest.fixture(params=["BLT-D engines", "BLT engines", "BLT-D sessions"])
def load(
    request: pytest.FixtureRequest,
    compiled: Callable[..., Path],
    tiny_checkpoint: Path,
    tiny_encoder_checkpoint: Path,
    gpu: FakeCuda,
) -> Load:
    """``load(sequences, max_bytes=256)``: engines, or sessions of ONNX Runtime, whose drafts need no host."""
    model, kind = request.param.split()
    options: dict[str, Any] = {} if model == "BLT-D" else {"hash_tables": "graph"}
    bundle = compiled(tiny_checkpoint if model == "BLT-D" else tiny_encoder_checkpoint, **options)

    def make(sequences: int, max_bytes: int = 256) -> DeviceBackend:
        if kind == "engines":
            return loading.load_tensorrt(bundle, "tensorrt-rtx", max_bytes, sequences=sequences)
        return loading.load_onnxruntime(bundle, "cuda", max_bytes, ort=FakeOnnxRuntime(gpu), sequences=sequences)

    return make


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let threads take turns far more often than usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(usual)


def read_and_draft(backend: DeviceBackend, text: bytes) -> list[bytes]:
    """Read a text in one slot by calls of all kinds, and return all that they return."""
    found: list[bytes] = []
    with Session(backend) as session:
        session.append(encode(text[:70], bos=False))
        found.append(session.score().logits.tobytes())
        for token in encode(text[70:80], bos=False):
            session.append([token])
            found += [array.tobytes() for array in session.run(draft(4))]
            found.append(session.score().logits.tobytes())  # a row alone, with the patcher behind it
            if token % 3 == 0 and session.config.block_size:
                session.append([token])
                _, block = session.run(score_with_block(np.array([1, 2, 3]), "closed"))
                found.append(block.logits.tobytes())
                session.rewind(session.length - 1)
        session.rewind(60)
        session.append(encode(text[80:120], bos=False))
        found.append(session.score().logits.tobytes())
    return found


@pytest.mark.usefixtures("hasty_threads")
def test_every_row_and_draft_is_the_same_bits_as_alone(load: Load) -> None:
    alone, together = load(1), load(SLOTS)
    expected = [read_and_draft(alone, text) for text in TEXTS]
    assert len({tuple(each) for each in expected}) == SLOTS
    with ThreadPoolExecutor(SLOTS) as pool:
        for _ in range(2):  # a slot is lent to another text the second time, and its work has been recorded
            assert list(pool.map(lambda text: read_and_draft(together, text), TEXTS)) == expected
            TEXTS.reverse()
            expected.reverse()


@pytest.mark.usefixtures("hasty_threads")
def test_every_method_writes_the_same_bytes_as_alone(load: Load) -> None:
    alone, together = BltRuntime(load(1)), BltRuntime(load(SLOTS))
    methods = METHODS[alone.config.decoder_input]

    def write(runtime: BltRuntime, text: bytes) -> list[bytes]:
        return [runtime.generate(text[:40], 16, method=method).data for method in methods]

    expected = [write(alone, text) for text in TEXTS]
    with ThreadPoolExecutor(SLOTS) as pool:
        assert list(pool.map(lambda text: write(together, text), TEXTS)) == expected


def counted(gpu: FakeCuda, backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return what the driver is asked for in the rounds of a text that repeats, once everything has been recorded."""
    copies: list[int] = []
    copy, found = gpu.cudaMemcpy2DAsync, []
    with monkeypatch.context() as patch, Session(backend) as session:
        patch.setattr(gpu, "cudaMemcpy2DAsync", lambda *arguments: (copies.append(1), copy(*arguments))[1])
        session.append(encode(TEXTS[0][:40], bos=False))
        session.score()
        for token in encode(TEXTS[0][40:48], bos=False):
            session.append([token])
            before = gpu.launches, gpu.waits, len(copies)
            session.run(draft(4))
            session.score()
            after = gpu.launches, gpu.waits, len(copies)
            found.append(tuple(b - a for a, b in zip(before, after, strict=True)))
    return found


def test_text_in_one_of_many_slots_asks_no_more_of_the_driver(
    load: Load, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = load(1), load(2)
    expected = counted(gpu, alone, monkeypatch)
    for _ in range(2):
        assert counted(gpu, together, monkeypatch) == expected
    graphs, allocations = dict(gpu.executables), dict(gpu.allocations)
    with Session(together) as busy:
        busy.append(encode(TEXTS[1][:20], bos=False))
        busy.score()
        counted(gpu, together, monkeypatch)
    assert gpu.executables.keys() >= graphs.keys()
    assert {address for address, each in gpu.allocations.items() if each.kind == "device"} == {
        address for address, each in allocations.items() if each.kind == "device"
    }


def test_all_slots_are_warmed_up_and_nothing_is_bound_or_recorded_later(load: Load, gpu: FakeCuda) -> None:
    backend = load(2)
    reports: list[tuple[int, int, str]] = []
    backend.warm_up(lambda *report: reports.append(report))
    names = [name for *_, name in reports]
    half = len(names) // 2
    assert [done for done, *_ in reports] == list(range(reports[0][1] + 1))
    assert [name.removeprefix("slot 1 of 2, ") for name in names[:half]] == [
        name.removeprefix("slot 2 of 2, ") for name in names[half:-1]
    ]
    bound = [{part: len(graph._classes) for part, graph in slot.graphs.items()} for slot in backend.slots]
    graphs = dict(gpu.executables)
    with Session(backend) as one, Session(backend) as other:
        for session in (one, other):
            session.append(encode(TEXTS[0][:40], bos=False))
            session.score()
            session.append([5])
            session.run(draft(4))
            session.score()
    assert [{part: len(graph._classes) for part, graph in slot.graphs.items()} for slot in backend.slots] == bound
    assert gpu.executables.keys() == graphs.keys()


def test_memory_is_that_of_one_slot_times_their_number(load: Load, gpu: FakeCuda) -> None:
    def allocated() -> int:
        return sum(each.size for each in gpu.allocations.values() if each.kind == "device")

    one = load(1)
    single = allocated()
    many = load(3)
    assert allocated() - 2 * single == 2 * many.sequence_bytes
    assert one.sequence_bytes == many.sequence_bytes
    free = gpu.memory - allocated()
    gpu.used_by_others = free - 3 * many.sequence_bytes + 1
    with pytest.raises(
        CapacityError, match=r"^sequences: found 3 for max_bytes=256, .* expected at most \d+ with .* GPU"
    ):
        load(3)


def test_slot_is_lent_again_once_its_sequence_is_closed_or_forgotten(load: Load) -> None:
    backend = load(2)
    first, second = backend.new_sequence(), backend.new_sequence()
    with pytest.raises(CapacityError, match=r"^sequences: found 2 open on the GPU, expected fewer than the 2 slots"):
        backend.new_sequence()
    first.run_encoder(0, np.ones(backend.config.hash.context, dtype=np.int64), np.array([0]), np.array([1]))
    first.close()
    first.close()
    with pytest.raises(ValueError, match=r"^sequence: found a closed one, expected one that is open$"):
        first.run_global(0, 1)
    third = backend.new_sequence()
    assert not third.tensor("encoder.key_0", 0, 8).any()
    with pytest.raises(CapacityError):
        backend.new_sequence()
    del second
    gc.collect()
    backend.new_sequence().close()
