"""Document masks, over whole sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.decoder import BlockRows
from fastblt.models.documents import first_bytes, first_of_document, first_patches
from fastblt.models.patching import find_patches
from fastblt.models.tokens import BOS_ID, EOS_ID, MASK_ID
from fastblt.runtime.sequence.documents import Documents


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_first_of_document_is_after_the_last_earlier_end(ends: list[bool]) -> None:
    found = first_of_document(torch.tensor([ends]))[0].tolist()
    assert found == [max([j + 1 for j in range(i) if ends[j]], default=0) for i in range(len(ends))]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_session_bounds_equal_those_of_whole_sequences(tokens: list[tuple[bool, bool]]) -> None:
    ids = torch.tensor([[EOS_ID if eos else 70 for eos, _ in tokens]])
    closes = torch.tensor([[i == 0 or closed for i, (_, closed) in enumerate(tokens)]])
    patches = find_patches(closes)
    documents = Documents(64)
    documents.extend(0, ids[0].tolist())
    start = 0
    for patch, end in enumerate((closes[0].nonzero().flatten() + 1).tolist()):
        documents.close_patch(patch, start, end)
        start = end
    count = patches.lengths.shape[1]
    assert documents.first_byte[: len(tokens)].tolist() == first_bytes(ids)[0].tolist()
    assert documents.first_patch[:count].tolist() == first_patches(ids, patches)[0].tolist()


def masked(config: BltConfig) -> BltConfig:
    return dataclasses.replace(config, document_masks=True)


def text_with_eos(length: int, at: int) -> torch.Tensor:
    ids = np.random.default_rng(4).integers(4, 260, length)
    ids[0], ids[at] = BOS_ID, EOS_ID
    return torch.from_numpy(ids).unsqueeze(0)


@pytest.mark.parametrize("decoder_input", ["encoder", "embedding"])
def test_masks_change_nothing_before_the_row_after_an_eos(
    tiny_config: BltConfig, tiny_encoder_config: BltConfig, make_model: Callable[..., Blt], decoder_input: str
) -> None:
    config = tiny_config if decoder_input == "embedding" else tiny_encoder_config
    plain, with_masks = make_model(config), make_model(masked(config))
    ids = text_with_eos(60, at=11)
    patches = plain.segment(ids)
    a, b = plain(ids, patches)[0][0], with_masks(ids, patches)[0][0]
    torch.testing.assert_close(a[:12], b[:12], atol=1e-5, rtol=0)
    assert (a[12:] - b[12:]).abs().amax(-1).min() > 1e-3


def test_rows_after_an_eos_do_not_depend_on_self_attention_before_it(
    tiny_encoder_config: BltConfig, make_model: Callable[..., Blt]
) -> None:
    """Hash n-grams cross the EOS, so they are switched off; each byte is a patch, so that pooling does not cross it."""
    rule = dataclasses.replace(tiny_encoder_config.patching, mode="static", max_patch_length=1)
    no_hash = dataclasses.replace(tiny_encoder_config.hash, functions=0)
    config = dataclasses.replace(masked(tiny_encoder_config), patcher=None, patching=rule, hash=no_hash)
    model = make_model(config)
    ids = text_with_eos(40, at=15)
    other = ids.clone()
    other[0, 1:15] = torch.randint(4, 260, (14,))
    a, b = model(ids)[0][0], model(other)[0][0]
    torch.testing.assert_close(a[16:], b[16:], atol=1e-5, rtol=0)
    assert (a[:15] - b[:15]).abs().max() > 1e-3


def test_block_rows_see_the_document_in_which_their_block_begins(
    tiny_config: BltConfig, make_model: Callable[..., Blt]
) -> None:
    model = make_model(masked(tiny_config))
    ids = text_with_eos(40, at=15)
    patches = model.segment(ids)
    starts = torch.tensor([[10, 20]])
    blocks = BlockRows(torch.full((1, 2, 4), MASK_ID), starts, patches.latent_index[0, starts - 1])
    found = model(ids, patches, blocks)[1]
    other = ids.clone()
    other[0, 1:5] = (other[0, 1:5] - 4 + 9) % 256 + 4
    states = model.decoder.rows(other, None)
    latents = model.encode(ids, patches)[1]
    again = model.decoder(states, latents, patches.latent_index, blocks, first_bytes(other))[1]
    assert found is not None
    assert again is not None
    torch.testing.assert_close(found[0, 4:], again[0, 4:], atol=1e-5, rtol=0)
    assert (found[0, :4] - again[0, :4]).abs().max() > 1e-4
