"""The global transformer without padding, against the whole model with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.documents import first_bytes, first_patches
from fastblt.models.tokens import BOS_ID, EOS_ID
from fastblt.models.training.packed import PackedPatches, encode_packed

LENGTH = 72


def windows() -> Tensor:
    ids = torch.randint(4, 260, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS_ID
    ids[0, 20] = ids[1, 50] = EOS_ID
    ids[2, 30:] = ids[2, 30]  # one byte again and again: longer patches
    return ids


@pytest.mark.parametrize("masked", [False, True])
def test_equals_padded_sequences(tiny_model: Blt, masked: bool) -> None:
    ids = windows()
    patches = tiny_model.segment(ids, pad_to=16)
    seen = (first_bytes(ids), first_patches(ids, patches)) if masked else (None, None)
    packed = PackedPatches.of(patches)
    counts = (patches.lengths > 0).sum(1)
    assert len(set(counts.tolist())) > 1, "or nothing is padded"
    assert packed.place.numel() == int(counts.sum()) < patches.lengths.numel()

    states, latents = encode_packed(tiny_model, ids, packed, *seen)
    wanted_states, embeddings = tiny_model.encoder(ids, patches, seen[0])
    wanted = tiny_model.global_transformer(embeddings, seen[1])
    torch.testing.assert_close(states, wanted_states)
    assert latents.shape == (1, int(counts.sum()), wanted.shape[-1])
    for row, first in enumerate(packed.first.flatten().tolist()):
        count = int(counts[row])
        torch.testing.assert_close(latents[0, first : first + count], wanted[row, :count])

    decoder, index = tiny_model.decoder, patches.latent_index
    rows = decoder.rows(ids, states)
    found = decoder.run_clean(rows, decoder.latent_kv(latents), index + packed.first, seen[0])[0]
    torch.testing.assert_close(found, decoder.run_clean(rows, decoder.latent_kv(wanted), index, seen[0])[0])


def test_gradients_equal_those_of_padded_sequences(tiny_model: Blt) -> None:
    model = Blt(tiny_model.config)
    model.load_state_dict(tiny_model.state_dict())
    model.patcher = None
    ids = windows()
    patches = tiny_model.segment(ids)
    gradients = []
    for latents, index in (
        (model.encode(ids, patches)[1], patches.latent_index),
        (encode_packed(model, ids, packed := PackedPatches.of(patches))[1], patches.latent_index + packed.first),
    ):
        model.zero_grad()
        decoder = model.decoder
        decoder.run_clean(decoder.rows(ids, None), decoder.latent_kv(latents), index)[0].logsumexp(-1).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    padded, unpadded = gradients
    assert padded.keys() == unpadded.keys()
    assert len(padded) > 20
    for name, wanted in padded.items():
        torch.testing.assert_close(unpadded[name], wanted, rtol=1e-3, atol=1e-4, msg=name)


def test_patches_are_named_one_after_the_other(tiny_model: Blt) -> None:
    ids = windows()
    packed = PackedPatches.of(tiny_model.segment(ids))
    bytes_of = [ids.flatten()[p[v]].tolist() for p, v in zip(packed.positions[0], packed.valid[0], strict=True)]
    assert [byte for patch in bytes_of for byte in patch] == ids.flatten().tolist()
