"""What a step costs: nothing is copied, only its own rows change, and its time does not depend on the capacity."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fakes.onnx_backends import MANY, OpenBackend, all_buffers, open_onnx, open_sequence
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.cpu.bound_graph import BoundGraph
from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.cpu.sessions import LoadedGraph, session_options
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest

Arrays = dict[str, NDArray[Any]]


def test_nothing_is_copied_by_the_runtime_between_steps(
    open_backend: OpenBackend, decoder_input: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = open_sequence(open_backend, decoder_input, MANY)
    cache = min(b.array.nbytes for g in sequence.graphs.values() for b in g.caches.buffers.values())
    assert cache > 8e6
    runtime = BltRuntime(sequence.backend)
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
    sequence = open_onnx(open_backend, decoder_input, 300).new_sequence()
    context = sequence.config.hash.context
    random = np.random.default_rng(9)
    # Something everywhere, also where no row has been yet: nothing may be cleared or moved.
    for name, buffer in all_buffers(sequence).items():
        if buffer.array.dtype == np.float32:
            buffer.array[:] = random.standard_normal(buffer.array.shape)
        assert buffer.array.flags.owndata, name
    position, patch = 130, 37

    def caches() -> Arrays:
        kept = {f"{part}.{n}": b for part, g in sequence.graphs.items() for n, b in g.caches.buffers.items()}
        kept |= {
            "pool": sequence.buffers.pool,
            "latent_kv": sequence.buffers.latent_kv,
            "states": sequence.buffers.states,
        }
        return {name: buffer.array.copy() for name, buffer in kept.items()}

    ids = random.integers(4, 260, size=rows)
    with_history = np.concatenate([random.integers(4, 260, size=context - 1), ids])
    at = np.arange(position, position + rows)
    written = set(at.tolist())
    reads_states = sequence.config.decoder_input == "encoder"
    calls: dict[str, tuple[Callable[[], Any], dict[str, set[int]]]] = {
        "patcher": (lambda: sequence.run_patcher(position, ids), {}),
        "encoder": (
            # One patch that began four positions before: its first row is the pool's first slot.
            lambda: sequence.run_encoder(position, with_history, at[:1] - 4, at[-1:] + 1),
            {"pool": set(written)} | ({"states": written} if reads_states else {}),
        ),
        "global": (lambda: sequence.run_global(patch, 1), {"latent_kv": {patch}}),
        "decoder": (lambda: sequence.run_decoder(position, ids, np.full(rows, patch)), {}),
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
        graph = BoundGraph(LoadedGraph.load(tiny_bundle / spec.file, spec, stack, options), MANY)
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
                graph.graph.session.run(None, feed)
        return min(scatter_seconds(Path(graph.graph.session.end_profiling())))

    bound, unbound = run(True), run(False)
    assert bound < 2e-4, "17 MB are not copied in so little time"
    assert unbound > 5 * bound, "this test would not notice a copy"


def test_step_time_does_not_depend_on_the_capacity(open_backend: OpenBackend, decoder_input: str) -> None:
    backends = {size: open_onnx(open_backend, decoder_input, size) for size in (512, MANY)}
    for backend in backends.values():
        backend.sequences = 1  # later texts find memory that is in use already
    runtimes = {size: BltRuntime(backend) for size, backend in backends.items()}
    # Of every step the quickest of five: a busy machine disturbs some of them each time, and never the same ones.
    best = {size: np.full(200, np.inf) for size in runtimes}
    for _ in range(5):
        for size, runtime in runtimes.items():
            stream = runtime.stream(b"time", 200, method="ar", stop_at_eos=False)
            next(stream)  # makes the session, whose arrays do depend on the capacity
            began = time.process_time()
            for step, _chunk in enumerate(stream):
                ended = time.process_time()
                best[size][step] = min(best[size][step], ended - began)
                began = ended
    seconds = {size: float(steps[np.isfinite(steps)].sum()) for size, steps in best.items()}
    assert seconds[MANY] < 1.5 * seconds[512], seconds
