"""Patches of a whole corpus, against the patcher over each document, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastblt.models.blt import Blt
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.patcher import entropy
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET
from fastblt.models.training import patch_ends
from fastblt.models.training.batches import place_windows, read_windows
from fastblt.models.training.corpus import Split
from fastblt.models.training.patch_ends import PatchEnds

DOCUMENTS = [b"the model reads bytes. " * 9, b"", b"x", bytes(range(256)) * 2]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_ends, "PIECE", 64)


@pytest.fixture
def text(make_split: Callable[[list[bytes]], Split]) -> Split:
    return make_split(DOCUMENTS)


def ends_of(model: Blt, text: Split, path: Path) -> PatchEnds:
    assert model.patcher is not None
    return PatchEnds(model.patcher, model.config.patching, text, path)


@torch.no_grad()
def test_ends_are_those_of_documents_read_as_a_whole(tiny_model: Blt, text: Split, tmp_path: Path) -> None:
    found = ends_of(tiny_model, text, tmp_path / "ends")
    assert found.find(lambda done: True)
    assert tiny_model.patcher is not None
    wanted = []
    for data in DOCUMENTS:
        ids = torch.tensor([[BOS_ID, *(byte + BYTE_OFFSET for byte in data)]])
        wanted.append((entropy(tiny_model.patcher(ids))[0, 1:] > tiny_model.config.patching.threshold).numpy())
    assert np.array_equal(found.ends, np.concatenate(wanted))
    assert 0.1 < found.ends.mean() < 0.9


def test_a_later_run_goes_on_with_the_file(tiny_model: Blt, text: Split, tmp_path: Path) -> None:
    path = tmp_path / "ends"
    first = ends_of(tiny_model, text, path)
    assert not first.find(lambda done: False)
    shares: list[float] = []
    again = ends_of(tiny_model, text, path)
    assert again.find(lambda done: not shares.append(done))
    assert len(shares) == len(DOCUMENTS) - 1
    assert shares[-1] == 1.0
    whole = ends_of(tiny_model, text, tmp_path / "other")
    assert whole.find(lambda done: True)
    assert np.array_equal(again.ends, whole.ends)
    assert ends_of(tiny_model, text, path).complete


def test_another_text_begins_anew(
    tiny_model: Blt, text: Split, make_split: Callable[[list[bytes]], Split], tmp_path: Path
) -> None:
    ends_of(tiny_model, text, tmp_path / "ends").find(lambda done: True)
    changed = make_split([DOCUMENTS[0].upper(), *DOCUMENTS[1:]])
    assert not ends_of(tiny_model, changed, tmp_path / "ends").complete


def test_windows_have_the_ends_of_their_bytes(tiny_model: Blt, text: Split, tmp_path: Path) -> None:
    found = ends_of(tiny_model, text, tmp_path / "ends")
    found.find(lambda done: True)
    starts, sizes = place_windows(text, 40, 48, np.random.default_rng(0))
    ids, _ = read_windows(text, starts, sizes, 48)
    ends = found.of_windows(starts, sizes, 48)
    assert ends.shape == ids.shape
    for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        kept = min(size, 47)
        assert bytes((ids[row, 1 : 1 + kept] - BYTE_OFFSET).tolist()) == bytes(text.text[start : start + kept])
        assert ends[row, 1 : 1 + kept].tolist() == found.ends[start : start + kept].tolist()
        assert not ends[row, 1 + kept :].any()
    assert not ends[:, 0].any()


def test_a_damaged_file_is_refused(tiny_model: Blt, text: Split, tmp_path: Path) -> None:
    path = tmp_path / "ends"
    ends_of(tiny_model, text, path).find(lambda done: True)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="ends: not the patch ends of a corpus"):
        ends_of(tiny_model, text, path)
