"""The GPU backend without a GPU: `fakes.cuda`, `fakes.tensorrt` and `fakes.onnxruntime_cuda` enforce the real rules.

The session's own tests (tests/runtime/sequence/test_session.py and others) run over it as well.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime
from shared_files import SharedFiles

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID, EOS_ID, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.sessions import session_options
from fastblt.runtime.backends.cuda_provider import cuda_problem
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.cuda import Cuda, Stream
from fastblt.runtime.backends.gpu.onnxruntime_executor import OnnxRuntimeExecutor
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, cache_slots
from fastblt.runtime.backends.gpu.tensor_table import binding_of
from fastblt.runtime.backends.protocol import DRAFT_SLACK, CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import BundleError, load_manifest
from fastblt.runtime.measure.audit.comparison import audit
from fastblt.runtime.measure.audit.ties import TIE_BOUND
from fastblt.runtime.sequence.requests import draft
from fastblt.runtime.sequence.session import Session

TEXT = b"In the beginning God created the heaven and the earth. " * 12
METHODS = [
    "ar",
    "s:4",
    "s:8",
    "s:8+partial",
    "dv:8@one",
    "dv:8@0.3",
    "dv:4@one+partial",
    "d:8@0.7",
    "d:8@eb1.0",
    "auto",
]
#: One of each kind.
FEW_METHODS = ["ar", "s:8", "dv:8@one", "d:8@0.7"]
BYTES = 40


@pytest.fixture(scope="module")
def shipped(compiled: Callable[..., Path], shipped_checkpoint: Path) -> dict[str, Path]:
    """Compile the shipped checkpoint in every form that engines are made of."""
    forms = {
        "fp32": {},
        "fp16": {"dtype": "fp16"},
        "bf16": {"dtype": "bf16"},
        "lowered": {"lowered": True},
        "tables inside": {"hash_tables": "graph"},
    }
    return {name: compiled(shipped_checkpoint, **options) for name, options in forms.items()}


def reference_of(bundle: Path, bf16_twin: Path) -> BltRuntime:
    """Load a bundle on the CPU."""
    on_cpu = bf16_twin if load_manifest(bundle).dtype == "bf16" else bundle
    return BltRuntime(OnnxRuntimeBackend.load(on_cpu, 1000, 1))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp32", "fp16", "bf16", "lowered", "tables inside"])
def test_audit_passes_with_every_method_when_engines_run(
    shipped: dict[str, Path], form: str, gpu: FakeCuda, bf16_twin: Path
) -> None:
    bundle = shipped[form]
    found = BltRuntime(loading.load_tensorrt(bundle, "tensorrt-rtx", 1000))
    reference = reference_of(bundle, bf16_twin)
    prompts = [("empty", b""), ("short", TEXT[:30]), ("long", TEXT)]
    methods = METHODS if form == "fp32" else FEW_METHODS
    rows = audit(reference, [(found, m) for m in methods], prompts, BYTES, TIE_BOUND[load_manifest(bundle).dtype])
    assert [row.faults for row in rows] == [[]] * len(methods)
    if form == "fp32":
        assert [row.identical for row in rows] == [3] * len(methods)
    assert gpu.launches > 500


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
@pytest.mark.parametrize("forbid_capture", [False, True], ids=["captured", "not captured"])
def test_text_is_the_same_whenever_queued_work_is_done(
    shipped: dict[str, Path], late: bool, forbid_capture: bool, make_gpu: Callable[..., FakeCuda]
) -> None:
    cuda = make_gpu(late=late, forbid_capture=forbid_capture)
    found = BltRuntime(loading.load_tensorrt(shipped["fp32"], "tensorrt-rtx", 500))
    expected = BltRuntime(OnnxRuntimeBackend.load(shipped["fp32"], 500, 1))
    for method in ("ar", "s:8", "dv:8@one"):
        assert found.generate(TEXT[:80], 60, method=method).data == expected.generate(TEXT[:80], 60, method=method).data
    assert (cuda.launches == 0) == forbid_capture


def test_graphs_run_without_capture_and_warn_when_it_fails(
    shipped: dict[str, Path], make_gpu: Callable[..., FakeCuda], caplog: pytest.LogCaptureFixture
) -> None:
    make_gpu(forbid_capture=True)
    runtime = BltRuntime(loading.load_tensorrt(shipped["fp32"], "tensorrt-rtx", 500))
    with caplog.at_level(logging.WARNING):
        runtime.generate(b"x", 10, method="ar")
    messages = [record.getMessage() for record in caplog.records]
    # Once for each shape class: the patcher's, the decoder's, some of the encoder's and the global transformer's.
    assert 2 <= len(messages) <= 8
    assert all("not captured as a CUDA graph" in message for message in messages)


@pytest.mark.parametrize("refuse", ["", "session", "run"])
def test_onnxruntime_writes_the_same_on_the_gpu_when_graphs_are_refused_or_not(
    shipped: dict[str, Path], refuse: str, gpu: FakeCuda
) -> None:
    ort = FakeOnnxRuntime(gpu, refuse)
    backend = loading.load_onnxruntime(shipped["fp32"], "cuda", 1000, ort=ort)
    assert backend.providers == ["CUDAExecutionProvider"]
    expected, runtime = BltRuntime(OnnxRuntimeBackend.load(shipped["fp32"], 1000, 1)), BltRuntime(backend)
    for method in ("ar", "s:8", "d:8@0.7"):
        wanted = expected.generate(TEXT, BYTES, method=method).data
        assert runtime.generate(TEXT, BYTES, method=method).data == wanted
    recorded = [len(session.recorded) for session in ort.sessions]
    assert any(recorded) == (refuse == "")


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here")
def test_session_is_refused_when_onnxruntime_falls_back_by_itself(tiny_bundle: Path, gpu: FakeCuda) -> None:
    manifest = load_manifest(tiny_bundle)
    options = session_options(manifest, 1)
    options.log_severity_level = 4
    providers = [("CUDAExecutionProvider", {})]
    path, stream = tiny_bundle / "decoder.onnx", Stream(Cuda(gpu))
    with pytest.raises(ProviderError, match=r"decoder\.onnx: session runs on CPUExecutionProvider, expected CUDA"):
        OnnxRuntimeExecutor(onnxruntime, path, manifest.graphs["decoder"], stream, 64, 0, 0, providers, options)


def test_nothing_outside_of_a_buffer_is_ever_bound_or_copied(tiny_bundle: Path, gpu: FakeCuda) -> None:
    backend = loading.load_onnxruntime(tiny_bundle, "cuda", 50, ort=FakeOnnxRuntime(gpu))
    slot = backend.slots[0]
    decoder, latents = slot.graphs["decoder"], slot.rows["latent_kv"]
    with pytest.raises(ValueError, match=rf"^decoder\.onnx: found 128 rows, expected at most {CALL_ROWS}$"):
        decoder.begin(2 * CALL_ROWS, 2 * CALL_ROWS)
    room = 50 + 1 + DRAFT_SLACK + CALL_ROWS
    latents.copy_from(slot.graphs["global"], room - 1, 1)
    for row, count in ((room, 1), (room - 1, 2), (-1, 1)):
        with pytest.raises(ValueError, match=f"^latent_kv: found rows {row} to {row + count}, expected at most {room}"):
            latents.copy_from(slot.graphs["global"], row, count)
    with pytest.raises(ValueError, match=f"^latent_kv: found rows {room} to {room + 1}, expected at most {room}"):
        slot.decoder.begin(0, np.array([room]))


def test_host_waits_once_a_byte_when_autoregressive(shipped: dict[str, Path], gpu: FakeCuda) -> None:
    runtime = BltRuntime(loading.load_tensorrt(shipped["fp32"], "tensorrt-rtx", 500))
    runtime.generate(TEXT[:40], 10, method="ar")
    waits = []
    for count in (50, 100):
        before = gpu.waits
        runtime.generate(TEXT[:40], count, method="ar")
        waits.append(gpu.waits - before)
    assert waits[1] - waits[0] == 50


def test_host_waits_for_the_draft_and_for_its_verification_when_self_speculating(
    shipped: dict[str, Path], gpu: FakeCuda
) -> None:
    runtime = BltRuntime(loading.load_tensorrt(shipped["fp32"], "tensorrt-rtx", 500))
    before = gpu.waits
    result = runtime.generate(TEXT[:40], 200, method="s:8")
    # A verification has a second part, and a wait of its own, where the first one agrees altogether.
    assert gpu.waits - before <= 3 * result.stats.rounds + 2


def test_nothing_is_allocated_and_no_class_bound_when_text_continues(shipped: dict[str, Path], gpu: FakeCuda) -> None:
    backend = loading.load_tensorrt(shipped["fp32"], "tensorrt-rtx", 1000)
    runtime = BltRuntime(backend)
    for _ in range(2):  # a class is captured when it occurs for the second time
        runtime.generate(TEXT[:300], 300, method="s:8")
    allocations, graphs = dict(gpu.allocations), dict(gpu.executables)
    runtime.generate(TEXT[:300], 300, method="s:8")
    assert gpu.allocations.keys() == allocations.keys()
    assert gpu.executables.keys() == graphs.keys()
    # Powers of two, and few of them.
    assert sum(len(graph._classes) for graph in backend.slots[0].graphs.values()) <= 40


def test_memory_does_not_grow_with_the_capacity_where_windows_end(tiny_config: BltConfig) -> None:
    assert cache_slots(tiny_config.decoder, 10_000) == cache_slots(tiny_config.decoder, 100_000)
    assert cache_slots(tiny_config.global_transformer, 100_000) > 100_000


def device_backend(bundle: Path, max_bytes: int) -> DeviceBackend:
    return loading.load_tensorrt(bundle, "tensorrt-rtx", max_bytes)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200, 255, 256, 257, 900])
def test_rows_equal_the_cpus_when_prompts_are_cut(shipped: dict[str, Path], gpu: FakeCuda, length: int) -> None:
    rows = []
    for backend in (device_backend(shipped["fp32"], 1000), OnnxRuntimeBackend.load(shipped["fp32"], 1000, 1)):
        session = Session(backend)
        session.append(encode((TEXT * 2)[:length], bos=False))
        rows.append(session.score().copy())
        assert session.scored == length + 1
    np.testing.assert_allclose(rows[0].logits, rows[1].logits, atol=1e-4)
    assert rows[0].best.tolist() == rows[1].best.tolist()


def test_far_rewind_starts_over_and_returns_the_same_rows(shipped: dict[str, Path], gpu: FakeCuda) -> None:
    backend = device_backend(shipped["fp32"], 1000)
    text = np.random.default_rng(0).bytes(900)
    session = Session(backend)
    session.append(encode(text[:100], bos=False))
    expected = session.score().logits[-1].copy()
    session.append(encode(text[100:], bos=False))
    session.score()
    session.rewind(800)
    assert session.scored == 800  # near: caches hold all that is needed
    session.rewind(101)
    assert session.scored == 101  # far: what was scored has been read again
    session.rewind(100)
    session.append(encode(text[99:100], bos=False))
    np.testing.assert_allclose(session.score().logits[-1], expected, atol=1e-4)


def test_open_patch_that_is_too_long_is_one_error_with_the_remedy(
    compiled: Callable[..., Path], make_model: Callable[..., object], long_patches: Path, gpu: FakeCuda
) -> None:
    backend = device_backend(long_patches, 1000)
    with pytest.raises(
        CapacityError, match=r"patch: found one that has \d+ bytes .* expected at most \d+ .*--max-patch"
    ):
        BltRuntime(backend).generate(b"a" * 900, 1, method="ar")


def test_open_patch_may_be_as_long_as_the_text_when_onnxruntime_runs(long_patches: Path, gpu: FakeCuda) -> None:
    ort = FakeOnnxRuntime(gpu)
    backend = loading.load_onnxruntime(long_patches, "cuda", 1000, ort=ort)
    found = BltRuntime(backend).generate(b"a" * 900, 4, method="ar").data
    assert found == BltRuntime(OnnxRuntimeBackend.load(long_patches, 1000, 1)).generate(b"a" * 900, 4, method="ar").data
    # Usual patches are pooled from few slots.
    assert len({pool for *_, pool in backend.slots[0].graphs["encoder"]._classes}) == 2


def test_text_may_be_shorter_than_usual_patches_when_onnxruntime_runs(long_patches: Path, gpu: FakeCuda) -> None:
    backend = loading.load_onnxruntime(long_patches, "cuda", 384, ort=FakeOnnxRuntime(gpu))
    assert len(BltRuntime(backend).generate(b"a" * 380, 4, method="ar").data) == 4


def test_sessions_compute_nothing_on_the_cpu_and_keep_weights_out_of_the_arena() -> None:
    options = loading._session_options(onnxruntime)
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"


@pytest.mark.parametrize("count", [1, 2, 3, CALL_ROWS])
def test_padding_is_not_seen_when_rows_are_no_power_of_two(shipped: dict[str, Path], gpu: FakeCuda, count: int) -> None:
    """Rows that pad a call leave nothing in the caches that later rows could see."""
    backend = device_backend(shipped["fp32"], 1000)
    session = Session(backend)
    session.append(encode(TEXT[:100], bos=False))
    session.score()
    for start in range(100, 300, count):
        session.append(encode(TEXT[start : start + count], bos=False))
        found = session.score().logits[-1].copy()
    whole = Session(OnnxRuntimeBackend.load(shipped["fp32"], 1000, 1))
    whole.append(session.tokens[1:])
    np.testing.assert_allclose(found, whole.score().logits[-1], atol=1e-4)


def test_role_that_is_unknown_is_refused_by_name(shipped: dict[str, Path], gpu: FakeCuda) -> None:
    graph = load_manifest(shipped["fp32"]).graphs["decoder"]
    odd = dataclasses.replace(graph.inputs[0], role="mood")
    with pytest.raises(BundleError, match=r"decoder\.onnx: tensor ids: found role 'mood'"):
        binding_of(odd, graph)


@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
def test_documents_are_masked_as_on_the_cpu(
    request: pytest.FixtureRequest,
    compiled: Callable[..., Path],
    make_model: Callable[..., Blt],
    shared_files: SharedFiles,
    gpu: FakeCuda,
    decoder_input: str,
) -> None:
    config = request.getfixturevalue("tiny_config" if decoder_input == "embedding" else "tiny_encoder_config")
    model = make_model(dataclasses.replace(config, document_masks=True))
    bundle = compiled(shared_files.make(f"documents-{decoder_input}", lambda folder: save_checkpoint(folder, model)))
    ids = encode(np.random.default_rng(3).bytes(300), bos=False)
    ids[[5, 6, 40, 41, 130, 299]] = EOS_ID
    logits, drafts, texts, waits = [], [], [], []
    for backend in (device_backend(bundle, 1000), OnnxRuntimeBackend.load(bundle, 1000, 1)):
        for method in ("ar", "s:4"):
            before = gpu.waits
            found = BltRuntime(backend).generate([BOS_ID, *ids[:60]], 40, method=method)
            texts.append(found.data)
            waits.append(gpu.waits - before - found.stats.rounds)
        session = Session(backend)
        session.append(ids[:200])
        first = session.score().logits.copy()
        session.append(ids[200:])
        logits.append(np.concatenate([first, session.score().logits.copy()]))
        session.append(ids[:1])
        drafts.append(session.run(draft(6))[0].tolist())
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert drafts[0] == drafts[1]
    assert texts[:2] == texts[2:]
    # Once for an empty sequence; twice the patcher was not asked ahead: about the prompt, and about the byte after it.
    assert waits[0] == 3
