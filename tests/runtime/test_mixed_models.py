"""A model with a draft decoder beside the BLT that it was made of: the same graphs and logits, drafts of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.lying_bundles import change, linked, sign
from fakes.uncompiled import Uncompiled
from numpy.typing import NDArray

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig, HashConfig, PatchingConfig
from fastblt.models.decoder import BlockRows
from fastblt.models.draft_decoder import Anchors
from fastblt.models.tokens import EOS_ID, MASK_ID, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.eager.compiled_backend import CompiledBackend
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import CONFIG_FILE, GRAPH_FILES, MANIFEST_FILE, BundleError
from fastblt.runtime.sequence.requests import denoise, draft_with_block, score_with_block
from fastblt.runtime.sequence.session import Session

OpenBackend = Callable[[str, str, int], Backend]
PROMPT = b"A prompt that is longer than the windows of all parts are."
LOSSLESS = ("ar", "s:4", "dv:4@one", "dv:3@0.004", "dv:4@eb12+partial", "dv:2@one+block", "auto")
SIZE = 4


@pytest.fixture(scope="module", params=["eager", "onnxruntime"])
def backend(request: pytest.FixtureRequest, open_backend: OpenBackend) -> Backend:
    return open_backend(request.param, "mixed", 300)


@pytest.fixture(scope="module")
def original(open_backend: OpenBackend) -> BltRuntime:
    """The BLT that has no draft decoder, in ONNX Runtime."""
    return BltRuntime(open_backend("onnxruntime", "encoder", 300))


def test_all_other_files_are_those_of_the_original(tiny_encoder_bundle: Path, tiny_mixed_bundle: Path) -> None:
    plain, mixed = Bundle.open(tiny_encoder_bundle), Bundle.open(tiny_mixed_bundle)
    assert mixed.manifest.files.keys() - plain.manifest.files.keys() == {"draft.onnx"}
    for name in plain.manifest.files.keys() - {CONFIG_FILE}:
        assert mixed.manifest.files[name] == plain.manifest.files[name], name
    assert [*mixed.manifest.graphs] == [*GRAPH_FILES, "draft"]
    assert mixed.config.draft_rank is None
    assert {entry["graph"] for entry in mixed.manifest.verification} > {*GRAPH_FILES.values(), "draft.onnx"}


def test_lossless_methods_write_what_the_original_writes(backend: Backend, original: BltRuntime) -> None:
    expected = original.generate(PROMPT, 20, method="ar", stop_at_eos=False)
    runtime = BltRuntime(backend)
    for method in LOSSLESS:
        found = runtime.generate(PROMPT, 20, method=method, stop_at_eos=False)
        assert found.data == expected.data, method
        if method != "auto":  # it may or may not try blocks in so short a text
            assert (found.stats.nfe["draft"] > 0) == method.startswith("dv"), method
        assert found.stats.estimated_gb(runtime.config) > 0


def test_rows_of_text_have_the_original_logits_to_the_bit(open_backend: OpenBackend, original: BltRuntime) -> None:
    """Also right after blocks, whose keys and values are in the same slots."""
    with original.session() as plain, Session(open_backend("onnxruntime", "mixed", 300)) as mixed:
        for session in (plain, mixed):
            session.append(encode(PROMPT, bos=False))
        expected = plain.score().logits.copy()
        np.testing.assert_array_equal(mixed.score().logits, expected)
        for token in (70, EOS_ID, 80, 90):
            for session in (plain, mixed):
                session.append([token])
            if token != 80:
                mixed.run(draft_with_block(np.full(SIZE, MASK_ID)))
                mixed.run(denoise(np.array([70, MASK_ID, 71])))
            np.testing.assert_array_equal(mixed.score().logits, plain.score().logits)
        mixed.append([91])
        plain.append([91])
        clean, _ = mixed.run(score_with_block(np.full(SIZE, MASK_ID), "partial"))
        np.testing.assert_array_equal(clean.logits, plain.score().logits)


def whole(model: Blt, tokens: list[int], block: list[int], *, anchored: bool) -> NDArray[np.float32]:
    """Rows of a block after tokens; anchored: and of the last token, all with the latent before it."""
    ids, starts = torch.tensor([tokens]), torch.tensor([[len(tokens)]])
    patches = model.segment(ids)
    latent = patches.latent_index[:, len(tokens) - 1 - anchored].unsqueeze(0)
    anchors = Anchors(ids[:, -1:], torch.ones(1, 1, dtype=torch.bool)) if anchored else None
    _, clean = model.run_clean(ids, patches)
    assert model.draft is not None
    with torch.inference_mode():
        return model.draft(BlockRows(torch.tensor([[block]]), starts, latent), clean, anchors)[0, 0].numpy()


def check_blocks(backend: Backend, model: Blt, tokens: list[int]) -> None:
    """Compare the rows of blocks, drafted and after a score, with whole sequences."""
    masked, part = [MASK_ID] * SIZE, [MASK_ID, 77, MASK_ID]
    with Session(backend) as session:
        session.append(tokens[1:-1])
        session.score()
        session.append(tokens[-1:])
        calls = dict(session.stats.nfe)
        before, rows = session.run(draft_with_block(np.array(masked)))
        found = np.concatenate([before.logits, rows.logits])
        np.testing.assert_allclose(found, whole(model, tokens, masked, anchored=True), atol=1e-4, rtol=0)
        found = session.run(denoise(np.array(part))).logits
        np.testing.assert_allclose(found, whole(model, tokens, part, anchored=True)[1:], atol=1e-4, rtol=0)
        made = {name: count - calls.get(name, 0) for name, count in session.stats.nfe.items()}
        assert {name: count for name, count in made.items() if count} == {"draft": 2}
        before, rows = session.run(score_with_block(np.array(masked), "closed"))
        np.testing.assert_allclose(rows.logits, whole(model, tokens, masked, anchored=False), atol=1e-4, rtol=0)
        assert (len(before.best), session.scored) == (1, len(tokens))
        assert (session.stats.nfe["decoder"], session.stats.nfe["draft"]) == (2, 3)


@pytest.mark.parametrize("length", [2, 9, 24, 60])
def test_block_rows_equal_whole_sequence(backend: Backend, tiny_mixed_model: Blt, length: int) -> None:
    tokens = encode(PROMPT * 2)[:length].tolist()
    check_blocks(backend, tiny_mixed_model.merged(), tokens)


@pytest.fixture(scope="module")
def other_geometry(tiny_mixed_config: BltConfig) -> BltConfig:
    """Documents are masked; no patcher, no hash tables, no windows, one token a latent, full matrices."""
    stacks = {
        name: dataclasses.replace(getattr(tiny_mixed_config, name), window=None, layers=1)
        for name in ("encoder", "global_transformer", "decoder")
    }
    return dataclasses.replace(
        tiny_mixed_config,
        name="other-mixed",
        patcher=None,
        patching=PatchingConfig(1.0, 5, "space"),
        hash=HashConfig((), 1),
        cross_attn_k=1,
        draft_rank=None,
        document_masks=True,
        **stacks,
    )


def test_documents_and_other_geometry(
    other_geometry: BltConfig, make_model: Callable[..., Blt], tmp_path: Path, exported: Callable[..., Path]
) -> None:
    """Blocks after an EOS begin a document, blocks behind it see no further back."""
    model = make_model(other_geometry)
    save_checkpoint(tmp_path / "other-mixed", model)
    backends = (
        OnnxRuntimeBackend.load(exported(tmp_path / "other-mixed", verify=True), 200, 1),
        EagerBackend(model, 200),
    )
    text = encode(PROMPT).tolist()
    for backend in backends:
        for tokens in (text[:20], [*text[:20], EOS_ID], [*text[:20], EOS_ID, *text[30:40]]):
            check_blocks(backend, model, tokens)
        prompt = b"first" + PROMPT
        runtime = BltRuntime(backend)
        expected = runtime.generate(prompt, 15, method="ar", stop_at_eos=False).data
        for method in ("s:4", "dv:4@one", "dv:3@one+partial"):
            assert runtime.generate(prompt, 15, method=method, stop_at_eos=False).data == expected, method


def test_padded_rows_write_what_exact_rows_write(tiny_mixed_model: Blt) -> None:
    exact = BltRuntime(EagerBackend(tiny_mixed_model, 100))
    padded = BltRuntime(CompiledBackend(tiny_mixed_model, 100, 1, Uncompiled()))
    for method in ("d:4@0.004", "dv:4@one", "dv:3@0.004+partial"):
        expected = exact.generate(PROMPT, 20, method=method, stop_at_eos=False)
        found = padded.generate(PROMPT, 20, method=method, stop_at_eos=False)
        assert found.data == expected.data
        assert found.stats.nfe == expected.stats.nfe


def test_checkpoint_and_bundle_draft_the_same(
    tiny_mixed_checkpoint: Path, tiny_mixed_bundle: Path, open_backend: OpenBackend
) -> None:
    texts = {
        BltRuntime(each).generate(PROMPT, 20, method="d:4@0.004", stop_at_eos=False).data
        for each in (
            open_backend("onnxruntime", "mixed", 100),
            EagerBackend.load(tiny_mixed_checkpoint, "cpu", 100, 1),
            EagerBackend.load(tiny_mixed_bundle, "cpu", 100, 1),
        )
    }
    assert len(texts) == 1


def test_saved_session_goes_on_after_a_draft(backend: Backend) -> None:
    with Session(backend) as session, Session(backend) as other:
        session.append(encode(PROMPT, bos=False))
        session.score()
        session.append([70])
        expected = session.run(draft_with_block(np.full(SIZE, MASK_ID)))[1].copy()
        other.restore(session.saved())
        assert other.run(draft_with_block(np.full(SIZE, MASK_ID)))[1].best.tolist() == expected.best.tolist()
        assert other.score().best[-1] == session.score().best[-1]


def test_sampling_verifies_drafts(backend: Backend) -> None:
    runtime = BltRuntime(backend)
    found = [
        runtime.generate(PROMPT, 30, method="dv:4@one", temperature=1.0, seed=3, stop_at_eos=False) for _ in range(2)
    ]
    assert found[0].data == found[1].data
    assert found[0].stats.nfe["draft"] > 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["graphs"].pop("draft"), "expected decoder, draft, encoder, global, patcher"),
        (
            lambda data: data["graphs"]["draft"]["inputs"][0].update(name="states"),
            "graph draft: input 0: found states int64 [batch, rows], role ids, expected ids int64 [batch, rows]",
        ),
    ],
)
def test_manifest_without_its_draft_is_refused(
    tiny_mixed_bundle: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    bundle = linked(tiny_mixed_bundle, tmp_path / "bundle")
    change(bundle / MANIFEST_FILE, edit)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert message in str(caught.value)


def test_configuration_of_a_bundle_has_no_rank(tiny_mixed_bundle: Path, tmp_path: Path) -> None:
    bundle = linked(tiny_mixed_bundle, tmp_path / "bundle")
    change(bundle / CONFIG_FILE, lambda data: data.update(draft_rank=3))
    sign(bundle, CONFIG_FILE)
    with pytest.raises(BundleError, match=r"config.json: found draft_rank 3, expected null: draft.onnx has full matri"):
        Bundle.open(bundle)
