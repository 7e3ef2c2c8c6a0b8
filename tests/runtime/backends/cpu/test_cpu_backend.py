"""The backend on ONNX Runtime's CPU provider against the eager one: rows, bytes and caches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.onnx_backends import random_text
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples

from fastblt.models.tokens import BYTE_OFFSET, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.sessions import session_options
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.protocol import Backend, Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import BundleError, load_manifest
from fastblt.runtime.sequence.session import Session

Arrays = dict[str, NDArray[Any]]


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
            session.sequence.run_encoder(first, fed, at, at + 1)
        tokens, latents = np.arange(50, 50 + count), np.full(count, latest)
        causal = session.sequence.run_decoder(first, tokens, latents).logits.copy()
        block = session.sequence.run_decoder(first, tokens, latents, block=count).logits.copy()
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
    found, expected = OnnxRuntimeBackend.load(bundle, 200, 1), EagerBackend.load(bundle, "cpu", 200, 1, exact=True)
    graphs = found.new_sequence().graphs
    assert {str(b.array.dtype) for b in graphs["decoder"].caches.buffers.values()} == {"float16"}
    assert {str(b.array.dtype) for b in graphs["patcher"].caches.buffers.values()} == {"float32"}
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


@examples(15)
@given(prompt=st.binary(max_size=60), count=st.integers(2, 60), data=st.data())
def test_caches_are_the_same_when_rewound_and_generated_again(
    onnx_backend: OnnxRuntimeBackend, prompt: bytes, count: int, data: st.DataObject
) -> None:
    session = Session(onnx_backend)
    sequence: Any = session.sequence

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
            for part, graph in sequence.graphs.items()
            for name, buffer in graph.caches.buffers.items()
        }
        return found | {"latent_kv": sequence.buffers.latent_kv.array[: lengths["global"]].copy()}

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


@pytest.mark.parametrize(("threads", "weights", "expected"), [(3, 0, 3), (None, 0, 1), (None, 2**30, os.cpu_count())])
def test_small_models_get_one_thread(tiny_bundle: Path, threads: int | None, weights: int, expected: int) -> None:
    manifest = load_manifest(tiny_bundle)
    for part, spec in manifest.graphs.items():
        manifest.graphs[part] = type(spec)(spec.file, spec.inputs, spec.outputs, spec.weight_bytes + weights)
    assert session_options(manifest, threads).intra_op_num_threads == expected


def test_moved_bytes_are_weights_and_the_view_of_the_caches(onnx_backend: OnnxRuntimeBackend) -> None:
    sequence, config = onnx_backend.new_sequence(), onnx_backend.config
    stacks = {
        "patcher": config.patcher,
        "encoder": config.encoder,
        "global": config.global_transformer,
        "decoder": config.decoder,
    }
    for part, stack in stacks.items():
        graph = sequence.graphs[part]
        found = sequence.moved_bytes(part, 300, 2) - graph.spec.weight_bytes
        slots = graph.caches.view(300, 2).slots
        assert found == slots * stack.layers * 2 * stack.dim * 4
