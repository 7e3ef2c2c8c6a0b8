"""Drafts on the device: the same bytes, probabilities and caches as step by step, in one CUDA graph and one wait."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.protocol import Drafted
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.session import Session

COUNT = 5
#: What follows random bytes is random, so that no draft is like another.
TEXT = np.random.default_rng(5).bytes(950)


@pytest.fixture(scope="session")
def bundles(
    compiled: Callable[..., Path], tiny_checkpoint: Path, tiny_encoder_checkpoint: Path
) -> Callable[[str], Path]:
    """``bundles(form)``: engines whose drafts need no host; those of ``lowered`` do not write their caches."""
    forms: dict[str, tuple[Path, dict[str, Any]]] = {
        "BLT-D": (tiny_checkpoint, {}),
        "BLT": (tiny_encoder_checkpoint, {"hash_tables": "graph"}),
        "lowered": (tiny_encoder_checkpoint, {"hash_tables": "graph", "lowered": True}),
    }
    return lambda form: compiled(forms[form][0], **forms[form][1])


def load(bundle: Path, gpu: FakeCuda, kind: str = "tensorrt-rtx") -> DeviceBackend:
    if kind == "onnxruntime":
        return loading.load_onnxruntime(bundle, "cuda", 1000, ort=FakeOnnxRuntime(gpu))
    return loading.load_tensorrt(bundle, kind, 1000)


def drafts_after(backend: DeviceBackend, lengths: range, *, on_device: bool) -> list[tuple[Drafted, dict[str, Any]]]:
    """Draft at the end of texts that grow, and return the drafts with what they left in the caches."""
    if not on_device:
        backend.slots[0].device_drafter = None
    session, found = Session(backend), []
    session.append(encode(TEXT[: lengths[0] - 1], bos=False))
    session.score()
    for length in lengths:
        session.append(encode(TEXT[length - 1 : length], bos=False))
        position = session.length - 1
        context = session._tokens.with_history(position, position + 1)
        drafted = session.sequence.draft(position, context, session._reader._latents.newest, COUNT)
        parts = ("decoder", "encoder") if backend.config.decoder_input == "encoder" else ("decoder",)
        caches = {
            f"{part}.{name}": session.sequence.tensor(f"{part}.{name}", position, COUNT)
            for part in parts
            for name in backend.slots[0].graphs[part].cache_names
        }
        found.append((drafted, caches))
        session.score()
    return found


@pytest.mark.parametrize(
    ("form", "kind", "captured"),
    [
        ("BLT-D", "tensorrt-rtx", True),
        ("BLT", "tensorrt-rtx", True),
        ("BLT", "tensorrt-rtx", False),
        ("lowered", "tensorrt-rtx", True),
        ("BLT-D", "onnxruntime", True),
        ("BLT", "onnxruntime", True),
    ],
)
def test_drafts_on_the_device_are_those_of_single_steps(
    bundles: Callable[[str], Path], make_gpu: Callable[..., FakeCuda], form: str, kind: str, captured: bool
) -> None:
    gpu, lengths = make_gpu(forbid_capture=not captured), range(40, 52)
    found = drafts_after(load(bundles(form), gpu, kind), lengths, on_device=True)
    expected = drafts_after(load(bundles(form), gpu, kind), lengths, on_device=False)
    assert len({tuple(drafted.tokens) for drafted, _ in expected}) > 3
    for (drafted, caches), (steps, left) in zip(found, expected, strict=True):
        assert drafted.tokens.tolist() == steps.tokens.tolist()
        assert drafted.probabilities.tolist() == steps.probabilities.tolist()
        assert caches.keys() == left.keys()
        for name, rows in caches.items():
            np.testing.assert_array_equal(rows, left[name], name)


@pytest.mark.parametrize("form", ["BLT-D", "BLT"])
def test_drafts_are_the_same_where_caches_slide(bundles: Callable[[str], Path], gpu: FakeCuda, form: str) -> None:
    lengths = range(600, 940, 23)
    backend = load(bundles(form), gpu)
    found = drafts_after(backend, lengths, on_device=True)
    assert backend.slots[0].graphs["decoder"].caches.base > 0
    expected = drafts_after(load(bundles(form), gpu), lengths, on_device=False)
    assert [d.tokens.tolist() for d, _ in found] == [d.tokens.tolist() for d, _ in expected]


def test_draft_binds_as_much_of_the_pool_as_it_needs(
    bundles: Callable[[str], Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for on_device in (True, False):
        backend = load(bundles("BLT"), gpu, "onnxruntime")
        monkeypatch.setattr(backend.slots[0].graphs["encoder"]._executor, "usual_pool_slots", 64)
        found.append([d.tokens.tolist() for d, _ in drafts_after(backend, range(55, 75, 3), on_device=on_device)])
    assert found[0] == found[1]


@pytest.mark.parametrize("form", ["BLT-D", "BLT"])
def test_draft_is_one_graph_and_one_wait_once_it_was_recorded(
    bundles: Callable[[str], Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    backend = load(bundles(form), gpu)
    drafts_after(backend, range(40, 43), on_device=True)
    copies: list[tuple[Any, ...]] = []
    copy = gpu.cudaMemcpy2DAsync
    monkeypatch.setattr(gpu, "cudaMemcpy2DAsync", lambda *arguments: (copies.append(arguments), copy(*arguments))[1])
    sequence = backend.new_sequence()
    launches, waits, allocations = gpu.launches, gpu.waits, dict(gpu.allocations)
    for _ in range(3):
        sequence.draft(43, encode(TEXT[: backend.config.hash.context], bos=False), 0, COUNT)
    assert (gpu.launches - launches, gpu.waits - waits) == (3, 3)
    assert len(copies) <= 3, "the latent that is read, if anything"
    assert gpu.allocations.keys() == allocations.keys()


def test_host_waits_twice_a_round_when_an_encoder_has_to_read_the_draft(
    bundles: Callable[[str], Path], gpu: FakeCuda
) -> None:
    runtime = BltRuntime(load(bundles("BLT"), gpu))
    before = gpu.waits
    result = runtime.generate(TEXT[:40], 120, method="s:8")
    assert gpu.waits - before <= 2 * result.stats.rounds + 2


def test_draft_after_one_that_was_interrupted_does_not_disturb_what_is_still_queued(
    bundles: Callable[[str], Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, context = load(bundles("BLT-D"), gpu), encode(b"ab" * 20, bos=False)
    sequence = backend.new_sequence()
    asked = [(position, context[position : position + backend.config.hash.context]) for position in (0, 1)]
    expected = [sequence.draft(position, ids, 0, COUNT).tokens.tolist() for position, ids in asked]
    with monkeypatch.context() as patch:
        patch.setattr(backend.stream, "synchronize", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sequence.draft(*asked[0], 0, COUNT)
    waits = gpu.waits
    assert sequence.draft(*asked[1], 0, COUNT).tokens.tolist() == expected[1]
    assert gpu.waits - waits == 2, "the interrupted draft's inputs must not be overwritten before they are read"


def test_first_draft_after_a_warm_up_is_recorded_and_the_same(bundles: Callable[[str], Path], gpu: FakeCuda) -> None:
    cold = drafts_after(load(bundles("BLT"), gpu), range(40, 42), on_device=True)
    backend = load(bundles("BLT"), gpu)
    drafter = backend.slots[0].device_drafter
    assert drafter is not None
    drafter.warm_up(COUNT)
    work = drafter._chains[COUNT, True]._work
    recorded = dict(work._recorded)
    assert None not in recorded.values()
    assert len(recorded) == 1
    warm = drafts_after(backend, range(40, 42), on_device=True)
    assert [d.tokens.tolist() for d, _ in warm] == [d.tokens.tolist() for d, _ in cold]
    assert work._recorded == recorded


def test_chains_that_are_kept_are_few_and_those_used_last(bundles: Callable[[str], Path], gpu: FakeCuda) -> None:
    backend = load(bundles("BLT-D"), gpu)
    sequence, drafter = backend.new_sequence(), backend.slots[0].device_drafter
    nothing = np.zeros(backend.config.hash.context, dtype=np.int64)
    assert drafter is not None
    for count in (1, 2, 3, 1, *range(4, 11)):
        sequence.draft(0, nothing, 0, count)
    assert [count for count, _ in drafter._chains] == [1, *range(4, 11)]


def test_chain_that_is_given_up_frees_its_memory_and_its_graph_at_once(
    bundles: Callable[[str], Path], gpu: FakeCuda
) -> None:
    backend = load(bundles("BLT-D"), gpu)
    sequence, nothing = backend.new_sequence(), np.zeros(backend.config.hash.context, dtype=np.int64)
    found = []
    gc.disable()
    try:
        for count in range(1, 12):
            for _ in range(2):
                sequence.draft(0, nothing, 0, count)
            found.append(sum(each.kind == "pinned" for each in gpu.allocations.values()))
    finally:
        gc.enable()
    assert found[-1] == found[-4] > found[0]
