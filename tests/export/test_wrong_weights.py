"""Weights that are not finite, beyond the range of their type or not the eager model's: no bundle is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fakes.bundle_folders import TENSORS, assert_nothing_is_left, assert_only, contents
from safetensors.torch import load_file, save_file

from fastblt.export.bundle_writer import export_bundle
from fastblt.export.verification import VerificationError
from fastblt.export.weights import CheckpointWeights
from fastblt.models.checkpoint import WEIGHTS_FILE
from fastblt.models.formats.errors import CheckpointError
from fastblt.runtime.bundle.manifest import (
    EMBEDDINGS_FILE,
    GRAPH_FILES,
)


@pytest.fixture
def edited(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """``edited(name, value)``: the tiny checkpoint with one element of a tensor set."""

    def edit(name: str, value: float) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(tiny_checkpoint, folder)
        tensors = load_file(folder / WEIGHTS_FILE)
        tensors[name].view(-1)[tensors[name].numel() // 2] = value
        save_file(tensors, folder / WEIGHTS_FILE)
        return folder

    return edit


def wrong_read(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`CheckpointWeights._read`, that changes one tensor: graphs are written from it, the eager model is not."""
    real = CheckpointWeights._read

    def read(self: CheckpointWeights, found: str, *rest: Any) -> torch.Tensor:
        tensor = real(self, found, *rest)
        return change(tensor) if found == name else tensor

    return read


def slightly_off(tensor: torch.Tensor) -> torch.Tensor:
    """Up to 3 % more or less; the same factor everywhere would not show before a norm."""
    return tensor * torch.linspace(0.97, 1.03, tensor.shape[-1])


@pytest.mark.parametrize(("name", "file"), TENSORS.items())
def test_old_bundle_stays_when_a_weight_differs_from_the_eager_model(
    tiny_checkpoint: Path, old_bundle: Path, name: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old_bundle)
    monkeypatch.setattr(CheckpointWeights, "_read", wrong_read(name, slightly_off))
    with pytest.raises(VerificationError, match=rf"^{file}: output \w+, \d+ rows at position \d+: found a relative"):
        export_bundle(tiny_checkpoint, old_bundle, force=True)
    assert_only(old_bundle, before)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["encoder.cross_attention.wkv.weight", "decoder.output.weight"])
def test_nothing_is_written_when_a_16_bit_weight_differs_from_the_eager_model(
    tiny_checkpoint: Path, tmp_path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointWeights, "_read", wrong_read(name, lambda tensor: tensor.flip(0)))
    with pytest.raises(VerificationError, match=TENSORS[name]):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle", dtype=dtype)
    assert_nothing_is_left(tmp_path / "out")


def test_nothing_is_written_when_a_weight_is_not_finite_in_the_graph_only(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = wrong_read("decoder.output.weight", lambda tensor: tensor * torch.nan)
    monkeypatch.setattr(CheckpointWeights, "_read", wrong)
    with pytest.raises(VerificationError, match=r"decoder\.onnx"):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle")
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("table", ["encoder.tok_embeddings.weight", "encoder.hash_embeddings.weight"])
def test_nothing_is_written_when_tables_on_the_host_differ_from_the_eager_model(
    tiny_checkpoint: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CheckpointWeights.chunks

    def chunks(self: CheckpointWeights, name: str, dtype: Any) -> Iterator[np.ndarray]:
        for piece in real(self, name, dtype):
            yield np.roll(piece, 1, axis=0) if name == table else piece

    monkeypatch.setattr(CheckpointWeights, "chunks", chunks)
    with pytest.raises(VerificationError, match=EMBEDDINGS_FILE):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle")
    assert_nothing_is_left(tmp_path / "out")


NAMES = [*TENSORS, "encoder.tok_embeddings.weight", "encoder.hash_embeddings.weight", "decoder.norm.weight"]


@pytest.mark.parametrize(
    ("name", "value", "hash_tables"),
    [(name, torch.nan, "host") for name in NAMES]
    + [
        ("encoder.hash_embeddings.weight", torch.inf, "graph"),
        ("global_transformer.layers.0.wo.weight", -torch.inf, "host"),
    ],
)
def test_error_names_the_tensor_when_a_weight_is_not_finite(
    edited: Callable[..., Path], tmp_path: Path, name: str, value: float, hash_tables: str
) -> None:
    checkpoint = edited(name, value)
    message = rf"{WEIGHTS_FILE}: {name}: found NaN or infinite values, expected finite weights$"
    with pytest.raises(CheckpointError, match=message):
        export_bundle(checkpoint, tmp_path / "out" / "bundle", hash_tables=hash_tables)
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("hash_tables", ["host", "graph"])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("patcher")])
def test_error_names_tensor_and_type_when_a_weight_is_beyond_the_range_of_fp16(
    edited: Callable[..., Path], tmp_path: Path, name: str, hash_tables: str
) -> None:
    checkpoint = edited(name, 1e6)
    message = rf"{WEIGHTS_FILE}: {name}: found values beyond the range of float16 \(largest 1e\+06\), expected finite"
    with pytest.raises(CheckpointError, match=message):
        export_bundle(checkpoint, tmp_path / "out" / "bundle", dtype="fp16", hash_tables=hash_tables)
    assert_nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize(("name", "lowered"), [("patcher.layers.0.wo.weight", False), ("decoder.norm.weight", True)])
def test_weights_that_stay_fp32_may_be_beyond_the_range_of_fp16(
    edited: Callable[..., Path], tmp_path: Path, name: str, lowered: bool
) -> None:
    export_bundle(edited(name, 1e6), tmp_path / "bundle", dtype="fp16", lowered=lowered, verify=False)
    found = [
        onnx.numpy_helper.to_array(w)
        for file in GRAPH_FILES.values()
        for w in onnx.load(tmp_path / "bundle" / file).graph.initializer
        if w.name.removesuffix(".T") == name
    ]
    assert [array.max() for array in found] == [1e6]
