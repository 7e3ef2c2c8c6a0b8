"""Where transformers computes something else than the model means, and what is computed here instead.

Each test says that the defect is there in the transformers that is installed, so that nobody looks for the difference
in this project, and that ours follows the rule. A later version that is right is a reason to skip, and to tidy up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_model
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.tokens import BOE_ID, EOS_ID, encode
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.blt_runtime import BltRuntime

transformers = pytest.importorskip("transformers", minversion="5.23")

KNOWN = Version("5.23.0")
"""Newest version that was looked at: it has every defect below."""
TOLERANCE = 1e-4
WRONG = 0.1
"""A logit that is off by more is no rounding."""
NEW = 32


def expect_defect(is_there: bool, what: str) -> None:
    """Skip where a version after `KNOWN` has mended it."""
    installed = Version(transformers.__version__)
    if not is_there and installed > KNOWN:
        pytest.skip(f"transformers {installed} has mended this: {what}")
    assert is_there, f"transformers {installed}: expected to find that {what}"


def greedy(theirs: Any, ids: list[int], **arguments: object) -> list[int]:
    found = theirs.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, **arguments)
    return found[0, len(ids) :].tolist()


def ours_greedy(ours: Blt, ids: list[int]) -> list[int]:
    runtime = BltRuntime(EagerBackend(ours, 300))
    return list(runtime.generate(np.array(ids), NEW, method="ar", stop_at_eos=False).tokens)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference of each row."""
    return (a - b).abs().amax(-1)


def test_cached_generation_works_here_while_transformers_raises(tiny_peer: Any) -> None:
    prompt = encode("my name is").tolist()
    assert ours_greedy(tiny_peer.ours, prompt) == greedy(tiny_peer.theirs, prompt, use_cache=False)
    raised = False
    try:
        greedy(tiny_peer.theirs, prompt)
    except AttributeError as error:
        raised = "num_hidden_layers" in str(error)
    expect_defect(raised, "generate() with its default use_cache=True raises AttributeError")


def test_caches_change_no_byte_here_while_transformers_errs_from_the_second_on(tiny_peer: Any) -> None:
    prompt = encode("my name is").tolist()
    right = greedy(tiny_peer.theirs, prompt, use_cache=False)
    assert ours_greedy(tiny_peer.ours, prompt) == right
    caches = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    forced = greedy(tiny_peer.theirs, prompt, use_cache=True, past_key_values=caches)
    assert forced[0] == right[0], "the first byte comes of the prompt as a whole"
    expect_defect(forced[1] != right[1], "caches that are passed to generate() make it wrong from the second byte on")


def test_prefixes_agree_with_the_whole_here_while_transformers_errs_at_ends_cut_by_length(
    make_peer: Callable[..., Any],
) -> None:
    peer = make_peer(max_patch_length=3)
    ids = peer.ids[:, :60]
    patches = peer.ours.segment(ids)
    assert patches.lengths.max() == 3
    whole = peer.theirs(ids, use_cache=False).logits[0]
    cut = int(patches.closes[0, -1])  # the last row is one of those that transformers may get wrong
    ours = peer.ours(ids)[0][0]
    assert difference(ours, whole)[: len(ours) - cut].max() < TOLERANCE
    wrong = []
    for length in range(1, 60):
        prefix = ids[:, :length]
        assert difference(peer.ours(prefix)[0][0, -1], ours[length - 1]) < TOLERANCE
        if difference(peer.theirs(prefix, use_cache=False).logits[0, -1], ours[length - 1]) > WRONG:
            wrong.append(length)
    # Where the last byte closes its patch, the patch to come, which has no byte, is lost, and the last row reads the
    # latent before the one that it closes. BOS alone has no latent before.
    closed = [length for length in range(2, 60) if patches.closes[0, length - 1]]
    expect_defect(wrong == closed, "max_patch_length makes the last position of such prefixes read the wrong latent")


def test_one_sequence_needs_no_padding_here_while_transformers_errs_where_it_is_on_the_left(tiny_peer: Any) -> None:
    ids = tiny_peer.ids[:, :40]
    alone = tiny_peer.theirs(ids, use_cache=False).logits[0]
    assert difference(tiny_peer.ours(ids)[0][0], alone).max() < TOLERANCE
    padded = torch.cat([torch.full((1, 5), BOE_ID), ids], dim=1)
    mask = (torch.arange(45) >= 5).long()[None]
    shifted = tiny_peer.theirs(padded, attention_mask=mask, use_cache=False).logits[0, 5:]
    wrong = bool(difference(shifted, alone).max() > WRONG)
    expect_defect(wrong, "padding on the left changes logits, attention mask or not")


def test_documents_are_masked_here_if_asked_while_transformers_never_does(make_ids: Any, tiny_peer: Any) -> None:
    ids = make_ids(120, 7)
    end = 50
    ids[0, end] = EOS_ID
    theirs = tiny_peer.theirs(ids, use_cache=False).logits[0]
    plain = masked_model(tiny_peer.folder, False)(ids)[0][0]
    masked = masked_model(tiny_peer.folder, True)(ids)[0][0]
    assert difference(masked, plain)[: end + 1].max() < TOLERANCE
    assert (difference(masked, plain)[end + 1 :] > WRONG).all()
    same = bool(difference(theirs, plain).max() < TOLERANCE)
    expect_defect(same, "rows after an EOS see what stands before it")


def masked_model(folder: Path, document_masks: bool) -> Blt:
    return load_model(open_checkpoint(folder, document_masks=document_masks))
