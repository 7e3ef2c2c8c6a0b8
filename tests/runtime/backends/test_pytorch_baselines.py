"""PyTorch as a baseline (in the bundle's dtype, reading back little, compiled) and as the exact reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.cpp_extension  # now: it needs setuptools, which cannot be imported after a search for pip
from fakes.uncompiled import Uncompiled
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.eager.compilation import Compiler, CompilerError
from fastblt.runtime.backends.eager.compiled_backend import CompiledBackend
from fastblt.runtime.backends.eager.readback import _LazyRows, _Logits, decoder_rows
from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import CapacityError, DecoderRows
from fastblt.runtime.backends.registry import load_backend, load_reference
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.session import Session

PROMPT = b"The quick brown fox jumps over the lazy dog. " * 3


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_baseline_has_the_dtype_of_the_bundle_and_the_reference_is_exact(
    tiny_checkpoint: Path, exported: Callable[..., Path], dtype: str
) -> None:
    request = LoadRequest(exported(tiny_checkpoint, dtype=dtype), max_bytes=80, threads=1)
    baseline, reference = load_backend("eager", request), load_reference("eager", request)
    assert isinstance(baseline, EagerBackend) and isinstance(reference, EagerBackend)  # noqa: PT018
    for backend, kind in (
        (baseline, {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]),
        (reference, torch.float32),
    ):
        types = {(name.startswith("patcher"), p.dtype) for name, p in backend.model.named_parameters()}
        assert types == {(True, torch.float32), (False, kind)}
        sequence = backend.new_sequence()
        assert sequence._caches["decoder"].keys.dtype == sequence._latent_kv.dtype == kind
        assert sequence._caches["patcher"].keys.dtype == torch.float32
        assert len(BltRuntime(backend).generate(b"abc", 20, method="ar", stop_at_eos=False).data) == 20
    rounded = baseline.model.decoder.output.weight.float()
    assert torch.equal(rounded, reference.model.decoder.output.weight)


def test_logits_stay_on_the_device_until_somebody_looks() -> None:
    copies: list[Tensor] = []

    class Counted(_Logits):
        @property
        def array(self) -> Any:
            copies.append(self.tensor)
            return self.tensor.numpy()

    logits = torch.randn(5, 9)
    plain = decoder_rows(logits)
    lazy = _LazyRows(plain.best, plain.probability, plain.entropy, Counted(logits))
    part = lazy.part(1, 3)
    replaced = lazy._replace(best=plain.best + 1)
    assert copies == []
    assert part.best.tolist() == plain.best[1:3].tolist()
    np.testing.assert_array_equal(part.logits, plain.logits[1:3])
    np.testing.assert_array_equal(replaced.logits, plain.logits)
    assert len(copies) == 1  # the part has logits of its own


CASES = [*(("tiny_model", name) for name in ("ar", "s:8", "d:4@0.7", "dv:4@one", "auto"))]
CASES += [("tiny_encoder_model", name) for name in ("ar", "s:8", "auto")]


@pytest.mark.parametrize(("model", "method"), CASES)
def test_padded_rows_write_what_exact_rows_write(request: pytest.FixtureRequest, model: str, method: str) -> None:
    either_model: Blt = request.getfixturevalue(model)
    exact = BltRuntime(EagerBackend(either_model, 240))
    expected = exact.generate(PROMPT, 60, method=method, stop_at_eos=False)
    compiler = Uncompiled()
    backend = CompiledBackend(either_model, 240, 1, compiler)
    assert len(PROMPT) + 60 > len(backend._sequence._caches["decoder"].slots), "the ring is used more than once"
    runtime = BltRuntime(backend)
    for _ in range(2):  # what one text leaves in the rings is not in the way of the next
        found = runtime.generate(PROMPT, 60, method=method, stop_at_eos=False)
        assert found.data == expected.data
    assert compiler.calls > 2 * found.stats.rounds
    if method == "ar":
        sampled, again = (
            each.generate(PROMPT, 20, method="ar", temperature=1.0, seed=1, stop_at_eos=False)
            for each in (runtime, exact)
        )
        assert sampled.data == again.data


def test_failure_in_a_draft_is_that_of_its_part(tiny_encoder_model: Blt, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = CompiledBackend(tiny_encoder_model, 60, 1, Uncompiled()).new_sequence()
    ids = np.zeros(tiny_encoder_model.config.hash.context, dtype=np.int64)

    def refuses(rows: DecoderRows) -> tuple[int, bool]:
        raise KeyError("the caller's own")

    def fails(*arguments: object) -> None:
        raise RuntimeError("index 9")

    with pytest.raises(KeyError, match="the caller's own"):
        sequence.draft(0, ids, 0, 2, refuses)
    for owner, name, part in (
        (tiny_encoder_model.encoder, "embed", "encoder"),
        (tiny_encoder_model.decoder, "rows", "decoder"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            with pytest.raises(GraphError, match=rf"^{part} of .*: failed while it ran \(index 9\)"):
                sequence.draft(0, ids, 0, 2)


def test_compiled_backend_has_one_sequence_whose_text_is_saved_and_restored(tiny_model: Blt) -> None:
    with pytest.raises(CapacityError, match=r"^sequences: found 2, expected 1 with backend eager-compiled"):
        CompiledBackend(tiny_model, 240, 1, Uncompiled(), sequences=2)
    backend = CompiledBackend(tiny_model, 240, 1, Uncompiled())
    with Session(backend) as session:
        with pytest.raises(CapacityError, match=r"^sequences: found one that is open, expected none"):
            Session(backend)
        session.append(np.frombuffer(PROMPT * 4, np.uint8).astype(np.int64)[:200] + 4)
        session.score()
        saved = session.saved()
        session.append([70])
        expected = session.score().logits[-1].copy()
        session.clear()
        session.append([80] * 90)
        session.score()
        session.restore(saved)
        session.append([70])
        np.testing.assert_array_equal(session.score().logits[-1], expected)
        session.close()
    Session(backend).close()  # given back, once


def test_real_program_computes_what_its_module_does(tiny_model: Blt) -> None:
    """The one test that calls the C++ compiler; ``fastblt audit --backend eager-compiled`` compares whole models."""
    sequence = CompiledBackend(tiny_model, 60, 1, Uncompiled()).new_sequence()
    module, slots = sequence._plain["global"], sequence._views["global"]
    calls = [sequence._first_arguments("global", 1, view) for view in slots]
    assert len(calls) > 1
    sequence.links.embeddings.normal_(generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        module(*calls[0])
        expected = sequence.links.latent_kv[:, 0].clone()
        sequence.links.latent_kv.zero_()
        compiler = Compiler("cpu")
        program = compiler.compile("global", module, calls, 1)
        for call in calls:
            sequence.links.latent_kv.zero_()
            compiler.run(program, *call)
            torch.testing.assert_close(sequence.links.latent_kv[:, 0], expected)


def test_missing_compiler_is_one_clear_error(tiny_model: Blt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerError, match=r"^eager-compiled: found no C\+\+ compiler 'no-such-compiler', exp"):
        CompiledBackend(tiny_model, 60, 1)


def test_failure_of_the_compiler_is_one_line(tiny_model: Blt) -> None:
    def fails(graph: object, inputs: object) -> None:
        raise RuntimeError("first line\nfatal error: Python.h: No such file\nmore")

    compiler = Compiler("cpu", {"backend": fails})
    with pytest.raises(CompilerError) as caught:
        CompiledBackend(tiny_model, 60, 1, compiler)
    assert "\n" not in str(caught.value)
    assert "(fatal error: Python.h: No such file), expected a working C++ compiler" in str(caught.value)
