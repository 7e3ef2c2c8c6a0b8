from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BYTE_OFFSET, encode
from fastblt.runtime.backends import providers
from fastblt.runtime.backends.cpu import bound_graph
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.bound_graph import Binding, BoundGraph
from fastblt.runtime.backends.cpu.buffers import VIEW_SLOTS, Buffer, KvBuffers
from fastblt.runtime.backends.cpu.sessions import session_options
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.backends.protocol import ROW_CAPACITY, Backend, Ids
from fastblt.runtime.backends.providers import choose_provider, cuda_works
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import BundleError, load_manifest
from fastblt.runtime.sequence.session import Session

OpenBackend = Callable[[str, str, int], Backend]
Arrays = dict[str, NDArray[Any]]
MANY = 65_536
"""A capacity whose caches take 8 to 17 MB each, most of which no test touches."""


def random_text(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def open_onnx(open_backend: OpenBackend, decoder_input: str, max_bytes: int) -> OnnxRuntimeBackend:
    backend = open_backend("onnxruntime", decoder_input, max_bytes)
    assert isinstance(backend, OnnxRuntimeBackend)
    return backend


@pytest.fixture(scope="module", params=["embedding", "encoder"])
def decoder_input(request: pytest.FixtureRequest) -> str:
    """Name where the decoder's input comes from."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def onnx_backend(open_backend: OpenBackend, decoder_input: str) -> OnnxRuntimeBackend:
    """Load a backend for 900 bytes."""
    return open_onnx(open_backend, decoder_input, 900)


@pytest.fixture(scope="module")
def eager_backend(open_backend: OpenBackend, decoder_input: str) -> Backend:
    """Load its eager counterpart."""
    return open_backend("eager", decoder_input, 900)


def advance(backend: Backend, sizes: list[int], ids: Ids) -> Iterator[tuple[Session, Any]]:
    """Yield a session and its rows as it scores ``ids`` (BOS first) in pieces; rows are valid until the next piece."""
    session, done = Session(backend), 1
    for size in sizes:
        session.append(ids[done : done + size])
        done = session.length
        yield session, session.score()


def test_rows_equal_eager_when_text_is_longer_than_the_windows(
    onnx_backend: OnnxRuntimeBackend, eager_backend: Backend
) -> None:
    sizes = [1, 7, 1, 1, 30, 2, 90, 1, 1, 300, 64, 1, 3]
    ids = encode(random_text(sum(sizes), 1))
    assert sum(sizes) > 4 * max(onnx_backend.config.decoder.window or 0, onnx_backend.config.patcher.window or 0)
    pairs = zip(advance(onnx_backend, sizes, ids), advance(eager_backend, sizes, ids), strict=True)
    for (session, found), (reference, expected) in pairs:
        assert session.patch_ends == reference.patch_ends
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4, rtol=0)
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5, rtol=0)
        np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-4, rtol=0)
        assert found.best.tolist() == expected.best.tolist()
        assert (found.best == found.logits.argmax(1)).all()


def test_block_rows_equal_eager_when_they_see_each_other(
    onnx_backend: OnnxRuntimeBackend, eager_backend: Backend
) -> None:
    ids = encode(random_text(80, 2))
    results = []
    for backend in (onnx_backend, eager_backend):
        ((session, _),) = advance(backend, [80], ids)
        latest = len(session.patch_ends) - 1
        first, count = session.length, 6
        if backend.config.decoder_input == "encoder":
            # The block's rows need byte states of their own.
            history = backend.config.hash.context - 1
            fed = np.concatenate([ids[-history:], np.arange(50, 50 + count)])
            at = np.arange(first, first + count)
            backend.run_encoder(first, fed, at, at + 1)
        tokens, latents = np.arange(50, 50 + count), np.full(count, latest)
        causal = backend.run_decoder(first, tokens, latents).logits.copy()
        block = backend.run_decoder(first, tokens, latents, block=count).logits.copy()
        # The last row of a block sees what it sees anyway, but what it reads has changed in the layers below.
        assert np.abs(causal - block)[:-1].max() > 1e-2
        results.append((causal, block))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["ar", "s:1", "s:4", "s:16"])
@pytest.mark.parametrize("length", [0, 5, 90, 700])
def test_bytes_equal_eager_autoregression(
    onnx_backend: OnnxRuntimeBackend, eager_backend: Backend, length: int, method: str
) -> None:
    prompt = random_text(length, 10 + length)
    expected = BltRuntime(eager_backend).generate(prompt, 60, method="ar", stop_at_eos=False)
    found = BltRuntime(onnx_backend).generate(prompt, 60, method=method, stop_at_eos=False)
    assert found.data == expected.data
    assert len(found.data) > 50  # tokens without a byte count
    assert len(set(found.data)) > 3


@pytest.mark.parametrize("hash_tables", ["host", "graph"])
def test_fp16_bundle_equals_its_eager_weights_but_for_rounding(
    tiny_checkpoint: Path, exported: Callable[..., Path], hash_tables: str
) -> None:
    bundle = exported(tiny_checkpoint, dtype="fp16", hash_tables=hash_tables)
    sizes, ids = [1, 40, 1, 1, 60], encode(random_text(103, 3))
    found, expected = OnnxRuntimeBackend.load(bundle, 200, 1), EagerBackend.load(bundle, "cpu", 200, 1)
    assert {str(b.array.dtype) for b in found.graphs["decoder"].caches.buffers.values()} == {"float16"}
    assert {str(b.array.dtype) for b in found.graphs["patcher"].caches.buffers.values()} == {"float32"}
    for (session, rows), (reference, wide) in zip(
        advance(found, sizes, ids), advance(expected, sizes, ids), strict=True
    ):
        assert session.patch_ends == reference.patch_ends
        np.testing.assert_allclose(rows.logits, wide.logits, atol=2e-2, rtol=0)


def test_error_names_the_graph_when_the_provider_has_no_kernels_for_its_type(
    tiny_checkpoint: Path, exported: Callable[..., Path]
) -> None:
    bundle = exported(tiny_checkpoint, dtype="bf16", hash_tables="host")
    with pytest.raises(BundleError, match=r"encoder\.onnx: ONNX Runtime cannot load it"):
        OnnxRuntimeBackend.load(bundle, 50, 1)


WITHOUT_TORCH = """
import sys

for name in ("torch", "onnx", "onnx_ir", "onnxscript", "optimum", "polygraphy", "transformers"):
    sys.modules[name] = None
from fastblt.runtime.blt_runtime import BltRuntime

runtime = BltRuntime.from_pretrained(sys.argv[1], max_bytes=200)
for method in ("ar", "s:4"):
    print(runtime.generate(b"no torch", 20, method=method, stop_at_eos=False).data.hex())
print(*[name for name, module in sys.modules.items() if name.startswith("torch") and module is not None])
"""


def test_torch_is_not_imported_when_backend_is_onnxruntime(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tiny_bundle)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, modules = done.stdout.split("\n")[:3]
    assert first == second != ""
    assert modules == ""


def all_buffers(backend: OnnxRuntimeBackend) -> dict[str, Buffer]:
    """Return every buffer of a backend, by where it is kept."""
    found = {}
    for name, value in (vars(backend) | vars(backend._buffers)).items():
        inner = getattr(value, "buffer", value)
        if isinstance(inner, Buffer):
            found[name] = inner
    for part, graph in backend.graphs.items():
        found |= {f"{part}.{name}": buffer for name, buffer in graph.caches.buffers.items()}
        for name in ("positions", "visible_start", "visible_end", "write_index"):
            found[f"{part}.{name}"] = getattr(graph, name).buffer
    return found


def owned(buffer: Buffer) -> range:
    """Return the addresses of a buffer."""
    return range(buffer.address, buffer.address + buffer.array.nbytes)


class SpiedBinding(Binding):
    """Notes what is bound where."""

    made: int = 0
    points: list[tuple[str, bool, tuple[int, ...], int, Buffer]]

    def __init__(self, session: Any, spec: Any) -> None:
        super().__init__(session, spec)
        type(self).made += 1

    def point(self, name: str, shape: tuple[int, ...], buffer: Buffer, row: int = 0) -> None:
        super().point(name, shape, buffer, row)
        self.points.append((name, name in self._inputs, shape, buffer.at(row), buffer))


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> type[SpiedBinding]:
    """Return the class that bindings are made of from now on."""
    monkeypatch.setattr(SpiedBinding, "made", 0)
    monkeypatch.setattr(SpiedBinding, "points", [], raising=False)
    monkeypatch.setattr(bound_graph, "Binding", SpiedBinding)
    return SpiedBinding


def test_addresses_stay_when_generating_and_rewinding(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    backend = open_onnx(open_backend, decoder_input, 400)
    before = all_buffers(backend)
    addresses = {name: buffer.address for name, buffer in before.items()}
    assert len(addresses) > 25
    assert len(set(addresses.values())) == len(addresses)
    runtime = BltRuntime(backend)
    runtime.generate(random_text(100, 4), 120, method="ar", stop_at_eos=False)
    session = Session(backend)
    session.append(encode(random_text(150, 5), bos=False))
    for keep in (120, 60, 1):
        session.score()
        session.rewind(keep)
        session.append(encode(random_text(40, keep), bos=False))
    runtime.generate(b"", 60, method="s:8", stop_at_eos=False)
    after = all_buffers(backend)
    assert {name: buffer.address for name, buffer in after.items()} == addresses
    assert all(after[name] is before[name] for name in before)
    assert all(int(buffer.array.ctypes.data) == buffer.address for buffer in after.values())
    names = set()
    for name, _, shape, address, buffer in spied.points:
        assert buffer in before.values()
        assert address in owned(buffer)
        size = int(np.prod(shape)) * buffer.array.itemsize
        assert address + size - 1 in owned(buffer), f"{name} {shape} is bound beyond its buffer"
        names.add(name)
    assert "key_0" in names


def test_caches_have_one_address_as_input_and_output(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    backend = open_onnx(open_backend, decoder_input, 200)
    BltRuntime(backend).generate(random_text(60, 6), 60, method="s:4", stop_at_eos=False)
    inputs = [p for p in spied.points if p[1] and (p[0].startswith(("key_", "value_")) or p[0] == "pool")]
    outputs = [p for p in spied.points if not p[1] and p[0].endswith("_out")]
    assert len(inputs) > 20
    plain = [(name, *rest) for name, _, *rest in inputs]
    assert plain == [(name.removesuffix("_out"), *rest) for name, _, *rest in outputs]


def test_bindings_are_far_fewer_than_calls_when_512_bytes_are_generated(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    runtime = BltRuntime(open_onnx(open_backend, decoder_input, 700))
    for method, most in (("ar", 8), ("s:8", 2.5)):
        spied.made = 0
        stats = runtime.generate(b"a prompt", 512, method=method, stop_at_eos=False).stats
        calls = sum(stats.nfe.values())
        assert stats.new_bytes > 500
        assert 0 < spied.made * most < calls, f"{method}: {spied.made} bindings for {calls} calls"


def test_bindings_are_kept_when_the_same_call_is_made_again(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    backend = open_onnx(open_backend, decoder_input, 200)
    session = Session(backend)
    session.append(encode(random_text(39, 8), bos=False))
    session.score()
    made = None
    for token in range(4, 24):
        session.append([token])
        session.score()
        session.rewind(40)
        made = spied.made if made is None else made
    # One more for a token that closes a patch, perhaps: the encoder and the global do not run for the others.
    assert spied.made - made <= 2


def test_nothing_is_copied_by_the_runtime_between_steps(
    open_backend: OpenBackend, decoder_input: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_onnx(open_backend, decoder_input, MANY)
    cache = min(b.array.nbytes for g in backend.graphs.values() for b in g.caches.buffers.values())
    assert cache > 8e6
    runtime = BltRuntime(backend)
    runtime.generate(b"warm", 200, method="ar", stop_at_eos=False)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a tensor was made or copied")

    for name in ("ortvalue_from_numpy", "ortvalue_from_shape_and_type"):
        monkeypatch.setattr(ort.OrtValue, name, forbidden)
    for name in ("bind_cpu_input", "bind_ortvalue_input", "bind_ortvalue_output", "copy_outputs_to_cpu", "get_outputs"):
        monkeypatch.setattr(ort.IOBinding, name, forbidden)
    monkeypatch.setattr(ort.InferenceSession, "run", forbidden)
    tracemalloc.start()
    try:
        for method in ("ar", "s:8"):
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            runtime.generate(b"cold", 300, method=method, stop_at_eos=False)
            peak = tracemalloc.get_traced_memory()[1] - start
            # The session's own token arrays are made once for all steps: 16 bytes a position.
            assert peak < 24 * MANY + 300_000, f"{method}: {peak} bytes"
            assert peak < cache
    finally:
        tracemalloc.stop()


def changed_rows(before: NDArray[Any], after: NDArray[Any]) -> set[int]:
    """Return the rows in which two contents differ, in any byte."""
    flat = [a.reshape(len(a), -1).view(np.uint8) for a in (before, after)]
    return set(np.flatnonzero((flat[0] != flat[1]).any(axis=1)).tolist())


@pytest.mark.parametrize("rows", [1, 5])
def test_step_changes_nothing_but_its_own_rows(open_backend: OpenBackend, decoder_input: str, rows: int) -> None:
    backend = open_onnx(open_backend, decoder_input, 300)
    context = backend.config.hash.context
    random = np.random.default_rng(9)
    # Something everywhere, also where no row has been yet: nothing may be cleared or moved.
    for name, buffer in all_buffers(backend).items():
        if buffer.array.dtype == np.float32:
            buffer.array[:] = random.standard_normal(buffer.array.shape)
        assert buffer.array.flags.owndata, name
    position, patch = 130, 37

    def caches() -> Arrays:
        kept = {f"{part}.{n}": b for part, g in backend.graphs.items() for n, b in g.caches.buffers.items()}
        kept |= {
            "pool": backend._buffers.pool,
            "latent_kv": backend._buffers.latent_kv,
            "states": backend._buffers.states,
        }
        return {name: buffer.array.copy() for name, buffer in kept.items()}

    ids = random.integers(4, 260, size=rows)
    with_history = np.concatenate([random.integers(4, 260, size=context - 1), ids])
    at = np.arange(position, position + rows)
    written = set(at.tolist())
    reads_states = backend.config.decoder_input == "encoder"
    calls: dict[str, tuple[Callable[[], Any], dict[str, set[int]]]] = {
        "patcher": (lambda: backend.run_patcher(position, ids), {}),
        "encoder": (
            # One patch that began four positions before: its first row is the pool's first slot.
            lambda: backend.run_encoder(position, with_history, at[:1] - 4, at[-1:] + 1),
            {"pool": set(written)} | ({"states": written} if reads_states else {}),
        ),
        "global": (lambda: backend.run_global(patch, 1), {"latent_kv": {patch}}),
        "decoder": (lambda: backend.run_decoder(position, ids, np.full(rows, patch)), {}),
    }
    for part, (call, others) in calls.items():
        before = caches()
        call()
        after = caches()
        expected = {name: set[int]() for name in before} | others
        for name in before:
            if name.startswith(f"{part}."):
                expected[name] = {patch} if part == "global" else written
        assert {name: changed_rows(before[name], after[name]) for name in before} == expected


def scatter_seconds(profile: Path) -> list[float]:
    """Return the time of every TensorScatter in a profile."""
    events = json.loads(profile.read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e.get("args", {}).get("op_name") == "TensorScatter"]
    return [e["dur"] * 1e-6 for e in kernels if e["name"].endswith("_kernel_time")]


def test_scatter_writes_in_place_when_input_and_output_are_bound_to_one_address(
    tiny_bundle: Path, tiny_config: BltConfig, tmp_path: Path
) -> None:
    manifest = load_manifest(tiny_bundle)
    spec, stack = manifest.graphs["global"], tiny_config.global_transformer

    def run(bind: bool) -> float:
        """Return the shortest time of a scatter of one row into caches of `MANY` slots."""
        options = session_options(manifest, 1)
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"profile-{bind}")
        graph = BoundGraph(tiny_bundle / spec.file, spec, stack, MANY, options)
        others = {
            name: Buffer(1, shape, np.dtype(np.float32))
            for name, shape in {
                "patch_embeddings": (1, tiny_config.patch_dim),
                "latents": (1, stack.dim),
                "latent_kv": (tiny_config.latent_kv_dim,),
            }.items()
        }
        binding = graph.prepare(MANY - 1, 1, ())
        for name, buffer in others.items():
            tensor = next(t for t in (*spec.inputs, *spec.outputs) if t.name == name)
            binding.point(name, tuple(s if isinstance(s, int) else 1 for s in tensor.shape), buffer)
        if bind:
            for _ in range(8):
                graph.run(binding)
        else:
            feed = {name: b.array.reshape(1, 1, -1, stack.dim) for name, b in graph.caches.buffers.items()}
            feed["patch_embeddings"] = others["patch_embeddings"].array
            for name in ("positions", "visible_start", "visible_end"):
                feed[name] = getattr(graph, name).values[None, :1]
            feed["write_index"] = graph.write_index.values[:1]
            for _ in range(8):
                graph.session.run(None, feed)
        return min(scatter_seconds(Path(graph.session.end_profiling())))

    bound, unbound = run(True), run(False)
    assert bound < 2e-4, "17 MB are not copied in so little time"
    assert unbound > 5 * bound, "this test would not notice a copy"


def test_step_time_does_not_depend_on_the_capacity(open_backend: OpenBackend, decoder_input: str) -> None:
    runtimes = {size: BltRuntime(open_onnx(open_backend, decoder_input, size)) for size in (512, MANY)}
    best = dict.fromkeys(runtimes, np.inf)
    for _ in range(5):
        for size, runtime in runtimes.items():
            stream = runtime.stream(b"time", 200, method="ar", stop_at_eos=False)
            next(stream)  # makes the session, whose arrays do depend on the capacity
            began = time.process_time()
            for _chunk in stream:
                pass
            best[size] = min(best[size], time.process_time() - began)
    assert best[MANY] < 1.5 * best[512], best


@examples(300)
@given(
    position=st.integers(0, 5000),
    rows=st.integers(1, ROW_CAPACITY),
    window=st.none() | st.integers(1, 600),
    spare=st.integers(0, 20_000),
)
def test_view_holds_what_rows_see_and_little_more(position: int, rows: int, window: int | None, spare: int) -> None:
    capacity = position + rows + spare
    buffers = KvBuffers(["key_0", "value_0"], capacity, 8, np.dtype(np.float16), window)
    view = buffers.view(position, rows)
    first = 0 if window is None else max(0, position - window + 1)
    assert 0 <= view.start <= first
    assert position + rows <= view.end <= len(buffers.buffers["key_0"].array)
    assert view.slots <= position + rows - first + 2 * VIEW_SLOTS
    # The same whatever the capacity.
    tight = KvBuffers(["key_0", "value_0"], position + rows, 8, np.dtype(np.float16), window)
    assert tight.view(position, rows) == view
    assert buffers.moved_bytes(position, rows) == view.slots * 2 * 8 * 2


def test_views_bound_in_a_generation_grow_with_the_text_and_not_with_the_capacity(
    open_backend: OpenBackend, decoder_input: str, spied: type[SpiedBinding]
) -> None:
    backend = open_onnx(open_backend, decoder_input, MANY)
    bound = {}
    for length in (20, 400):
        spied.points.clear()
        BltRuntime(backend).generate(random_text(length, 11), 30, method="ar", stop_at_eos=False)
        slots: dict[int, set[int]] = {}
        for name, _, shape, _, buffer in spied.points:
            if name == "key_0":
                slots.setdefault(buffer.address, set()).add(shape[2])
        bound[length] = {
            part: max(slots[graph.caches.buffers["key_0"].address]) for part, graph in backend.graphs.items()
        }
    # The prompt is one call, whose rows all have to be seen.
    assert max(bound[400].values()) <= 400 + 30 + 2 * VIEW_SLOTS
    assert max(bound[20].values()) <= 20 + 30 + 2 * VIEW_SLOTS
    assert bound[400]["global"] > bound[20]["global"]


def test_prompt_is_read_in_the_windows_when_rows_are_few(onnx_backend: OnnxRuntimeBackend) -> None:
    for part in ("patcher", "encoder", "decoder"):
        window = onnx_backend.graphs[part].window
        assert window is not None
        assert onnx_backend.graphs[part].caches.view(800, 1).slots <= window + 2 * VIEW_SLOTS
    assert onnx_backend.graphs["global"].window is None


@examples(15)
@given(prompt=st.binary(max_size=60), count=st.integers(2, 60), data=st.data())
def test_caches_are_the_same_when_rewound_and_generated_again(
    onnx_backend: OnnxRuntimeBackend, prompt: bytes, count: int, data: st.DataObject
) -> None:
    session = Session(onnx_backend)

    def generate(until: int) -> None:
        """Score what is pending and continue greedily, until ``until`` tokens are scored."""
        best = session.score().best[-1]
        while session.length < until:
            session.append([int(best)])
            best = session.score().best[-1]

    def valid() -> Arrays:
        """Return the slots that hold something of the text."""
        whole = session.config.decoder_input == "embedding"
        lengths = {
            "patcher": session.scored,
            "encoder": session.open_start if whole else session.scored,
            "global": len(session.patch_ends),
            "decoder": session.scored,
        }
        found = {
            f"{part}.{name}": buffer.array[: lengths[part]].copy()
            for part, graph in onnx_backend.graphs.items()
            for name, buffer in graph.caches.buffers.items()
        }
        return found | {"latent_kv": onnx_backend._buffers.latent_kv.array[: lengths["global"]].copy()}

    session.append(encode(prompt, bos=False))
    first = session.length
    generate(first + count)
    tokens, ends, expected = session.tokens.tolist(), list(session.patch_ends), valid()
    keep = data.draw(st.integers(first, first + count - 1))
    session.rewind(keep)
    # Other bytes are written over the rest, and forgotten.
    session.append([BYTE_OFFSET + 7] * data.draw(st.integers(1, 40)))
    session.score()
    session.rewind(keep)
    session.append([tokens[keep]])
    generate(first + count)
    assert session.tokens.tolist() == tokens
    assert session.patch_ends == ends
    for name, value in valid().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_provider_is_named_with_the_choices_when_unknown() -> None:
    with pytest.raises(ProviderError, match=r"^provider: found 'tpu', expected auto, cpu, cuda, tensorrt$"):
        choose_provider("tpu")


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
@pytest.mark.parametrize("name", ["tpu", "CPU", "", "CUDAExecutionProvider"])
def test_unknown_provider_is_refused(tiny_bundle: Path, backend: str, name: str) -> None:
    with pytest.raises(ProviderError, match=f"^provider: found '{name}'"):
        BltRuntime.from_pretrained(tiny_bundle, provider=name, backend=backend, max_bytes=50)


@pytest.mark.skipif(cuda_works(), reason="CUDA works here")
@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_cuda_is_refused_when_it_does_not_work(
    tiny_bundle: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProviderError, match=r"^provider: found 'cuda', but "):
        BltRuntime.from_pretrained(tiny_bundle, provider="cuda", backend=backend, max_bytes=50)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(cuda_works(), reason="CUDA works here")
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_cpu_is_chosen_quietly_when_cuda_is_listed_but_does_not_work(
    tiny_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*providers.PROVIDERS.values()])
    cuda_works.cache_clear()
    runtime = BltRuntime.from_pretrained(tiny_bundle, provider=name, max_bytes=50)
    assert runtime.backend.device == "cpu"
    runtime.generate(b"x", 3, method="ar")
    assert capfd.readouterr() == ("", "")


def test_cuda_is_chosen_when_it_is_asked_for_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` stays on the CPU until an audit has passed on a GPU."""
    monkeypatch.setattr(providers, "cuda_works", lambda: True)
    assert [choose_provider(name) for name in ("auto", "cuda", "cpu")] == ["cpu", "cuda", "cpu"]


def test_cuda_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def available() -> list[str]:
        calls.append(1)
        return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", available)
    cuda_works.cache_clear()
    try:
        assert [cuda_works(), cuda_works()] == [False, False]
        assert len(calls) == 1
    finally:
        cuda_works.cache_clear()


@pytest.mark.parametrize(("threads", "weights", "expected"), [(3, 0, 3), (None, 0, 1), (None, 2**30, os.cpu_count())])
def test_small_models_get_one_thread(tiny_bundle: Path, threads: int | None, weights: int, expected: int) -> None:
    manifest = load_manifest(tiny_bundle)
    for part, spec in manifest.graphs.items():
        manifest.graphs[part] = type(spec)(spec.file, spec.inputs, spec.outputs, spec.weight_bytes + weights)
    assert session_options(manifest, threads).intra_op_num_threads == expected


def test_moved_bytes_are_weights_and_the_view_of_the_caches(onnx_backend: OnnxRuntimeBackend) -> None:
    config = onnx_backend.config
    stacks = {
        "patcher": config.patcher,
        "encoder": config.encoder,
        "global": config.global_transformer,
        "decoder": config.decoder,
    }
    for part, stack in stacks.items():
        graph = onnx_backend.graphs[part]
        found = onnx_backend.moved_bytes(part, 300, 2) - graph.spec.weight_bytes
        slots = graph.caches.view(300, 2).slots
        assert found == slots * stack.layers * 2 * stack.dim * 4
