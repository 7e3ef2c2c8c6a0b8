"""Models with document masks, and models whose patches need no entropy model, through both backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from shared_files import SharedFiles

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.decoder import BlockRows
from fastblt.models.tokens import BOS_ID, EOS_ID, MASK_ID, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.protocol import Backend, Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.sequence.requests import denoise, draft, draft_with_block, score_with_block
from fastblt.runtime.sequence.session import Session

MAX_BYTES = 300
RULES = {
    "space": PatchingConfig(mode="space"),
    "space-at-most-3": PatchingConfig(mode="space", max_patch_length=3),
    "byte": PatchingConfig(mode="static", max_patch_length=1),
    "static-3": PatchingConfig(mode="static", max_patch_length=3),
}
VARIANTS = ["documents", *RULES]


class Variant(NamedTuple):
    """Holds a model, and both backends over it."""

    model: Blt
    eager: Backend
    onnx: Backend


def variant_of(config: BltConfig, name: str) -> BltConfig:
    if name == "documents":
        return dataclasses.replace(config, document_masks=True)
    return dataclasses.replace(config, patcher=None, patching=RULES[name])


@pytest.fixture(scope="module", params=["encoder", "embedding"])
def base(request: pytest.FixtureRequest, tiny_config: BltConfig, tiny_encoder_config: BltConfig) -> BltConfig:
    return tiny_encoder_config if request.param == "encoder" else tiny_config


@pytest.fixture(scope="module", params=VARIANTS)
def variant(
    request: pytest.FixtureRequest,
    base: BltConfig,
    make_model: Callable[..., Blt],
    shared_files: SharedFiles,
    exported: Callable[..., Path],
) -> Variant:
    model = make_model(variant_of(base, request.param))
    checkpoint = shared_files.make(f"{base.name}-{request.param}", lambda folder: save_checkpoint(folder, model))
    bundle = exported(checkpoint, verify=True)
    parts = set(load_manifest(bundle).graphs)
    assert ("patcher" in parts) == (model.patcher is not None) == (bundle / "entropy.onnx").exists()
    onnx = OnnxRuntimeBackend.load(bundle, MAX_BYTES, 1)
    return Variant(model, EagerBackend(model, MAX_BYTES), onnx)


def text_with_eos(length: int, seed: int = 0) -> Ids:
    """Return BOS, bytes (some of them spaces), and a few EOS and BOS in between."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 260, length)
    ids[rng.random(length) < 0.2] = 36
    ids[rng.random(length) < 0.05] = EOS_ID
    ids[rng.random(length) < 0.02] = BOS_ID
    ids[0], ids[length // 3] = BOS_ID, EOS_ID
    found: Ids = ids.astype(np.int64)
    return found


def scored(backend: Backend, ids: Ids, sizes: list[int]) -> tuple[np.ndarray, list[int]]:
    """Return the logits of every row, and the patch ends, of a text that is scored in pieces."""
    session = Session(backend)
    rows, done = [], 1
    rows.append(session.score().logits.copy())
    for size in [*sizes, len(ids)]:
        piece = ids[done : done + size]
        if len(piece):
            session.append(piece)
            rows.append(session.score().logits.copy())
            done += len(piece)
    return np.concatenate(rows), session.patch_ends


@examples(8)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 60), max_size=8))
def test_any_split_equals_the_whole_sequence_when_there_are_eos_inside(
    variant: Variant, seed: int, sizes: list[int]
) -> None:
    ids = text_with_eos(110, seed)
    whole = torch.from_numpy(ids).unsqueeze(0)
    patches = variant.model.segment(whole)
    expected = variant.model(whole, patches)[0][0].numpy()
    for backend in (variant.eager, variant.onnx):
        logits, ends = scored(backend, ids, sizes)
        assert ends == (patches.closes[0].nonzero().flatten() + 1).tolist()
        np.testing.assert_allclose(logits, expected, atol=5e-5, rtol=0)


def test_verified_methods_write_the_bytes_of_ar_after_an_eos(variant: Variant) -> None:
    prompt = text_with_eos(70)
    methods = ["s:4", "s:8", "s:8+partial", "auto"]
    if variant.model.config.block_size:
        methods += ["dv:4@one", "dv:4@0.7"]
    texts = []
    for backend in (variant.eager, variant.onnx):
        runtime = BltRuntime(backend)
        ar = runtime.generate(prompt, 60, method="ar", stop_at_eos=False)
        texts.append(ar.data)
        for method in methods:
            assert runtime.generate(prompt, 60, method=method, stop_at_eos=False).data == ar.data, method
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_block_diffusion_is_the_same_on_both_backends_after_an_eos(variant: Variant) -> None:
    if not variant.model.config.block_size:
        pytest.skip("a BLT denoises no blocks")
    prompt = text_with_eos(70)
    for method in ("d:4@one", "d:4@0.7", "d:4@0.7+partial", "d:4@one+block"):
        found = [
            BltRuntime(b).generate(prompt, 40, method=method, stop_at_eos=False).data
            for b in (variant.eager, variant.onnx)
        ]
        assert found[0] == found[1], method


@pytest.mark.parametrize("last", [EOS_ID, 90])
def test_block_rows_are_those_of_the_whole_sequence_after_an_eos(variant: Variant, last: int) -> None:
    """The block's document is that of its first byte, which begins after an EOS."""
    if not variant.model.config.block_size:
        pytest.skip("a BLT denoises no blocks")
    ids = text_with_eos(70, seed=5)
    ids[-1] = last
    block = np.array([MASK_ID, 80, MASK_ID], dtype=np.int64)
    whole = torch.from_numpy(np.append(ids, 70)).unsqueeze(0)  # a block begins where a clean row is
    patches = variant.model.segment(whole)

    def expected(latent: int) -> np.ndarray:
        rows = BlockRows(torch.from_numpy(block)[None, None], torch.tensor([[len(ids)]]), torch.tensor([[latent]]))
        index = patches.latent_index.clone()
        index[0, len(ids) - 1] = latent  # a draft's last token reads what the block does
        found = variant.model(whole, patches, rows, latent_index=index)[1]
        assert found is not None
        logits: np.ndarray = found[0].numpy()
        return logits

    for backend in (variant.eager, variant.onnx):
        session = Session(backend)
        session.append(ids[1:-1])
        session.score()
        session.append(ids[-1:])
        drafted = session.run(draft_with_block(block))[1].logits.copy()
        np.testing.assert_allclose(drafted, expected(int(patches.latent_index[0, len(ids) - 2])), atol=5e-5, rtol=0)
        scored_block = session.run(score_with_block(block, "closed"))[1].logits.copy()
        latent = int(patches.latent_index[0, len(ids) - 1])
        np.testing.assert_allclose(scored_block, expected(latent), atol=5e-5, rtol=0)
        np.testing.assert_allclose(session.run(denoise(block)).logits, expected(latent), atol=5e-5, rtol=0)


def test_drafts_see_the_document_of_their_last_token(variant: Variant) -> None:
    """A draft is what whole sequences predict, if the rows of the draft read the newest latent."""
    ids = text_with_eos(70, seed=6)
    ids[-5] = EOS_ID
    ids[-4:] = [80, 90, 100, 110]
    for backend in (variant.eager, variant.onnx):
        session = Session(backend)
        session.append(ids[1:-1])
        session.score()
        session.append(ids[-1:])
        tokens, probabilities = session.run(draft(4))
        whole = torch.from_numpy(np.concatenate([ids, tokens])).unsqueeze(0)
        patches = variant.model.segment(whole)
        index = patches.latent_index.clone()
        index[:, len(ids) - 1 :] = index[0, len(ids) - 2]
        rows = variant.model(whole, patches, latent_index=index)[0][0, len(ids) - 1 : -1].softmax(-1)
        np.testing.assert_allclose(probabilities, rows.amax(-1).numpy(), atol=1e-5, rtol=0)
        assert tokens.tolist() == rows.argmax(-1).tolist()


def test_rewound_rows_are_scored_anew_when_an_eos_is_taken_back(variant: Variant) -> None:
    ids = text_with_eos(50, seed=3)
    session = Session(variant.onnx)
    session.append(ids[1:])
    first = session.score().logits.copy()
    session.append([EOS_ID, 90, 91])
    session.score()
    session.rewind(30)
    session.append(ids[30:])
    again = session.score().logits
    np.testing.assert_allclose(again, first[30:], atol=5e-5, rtol=0)


@examples(60)
@given(text=st.text(max_size=40), cut=st.integers(0, 40))
def test_space_patches_end_at_space_like_bytes(base: BltConfig, text: str, cut: int) -> None:
    """The rule in words, for whole sequences and in two pieces."""
    ids = encode(text)
    raw = text.encode()
    like = [True, *(not ((chr(b).isascii() and chr(b).isalnum()) or 0x80 <= b < 0xC0) for b in raw)]
    expected = [i + 1 for i in range(len(ids)) if i == 0 or (like[i] and not like[i - 1])]
    model = Blt(variant_of(base, "space"))
    found = model.segment(torch.from_numpy(ids).unsqueeze(0)).closes[0].nonzero().flatten() + 1
    assert found.tolist() == expected
    _, ends = scored(EagerBackend(model, 200), ids, [cut])
    assert ends == expected
