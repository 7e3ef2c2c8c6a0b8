import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastblt.models import atomic_folder, checkpoint
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint, save_checkpoint
from fastblt.models.config import ConfigError
from fastblt.models.formats.checkpoint import HASH_TABLE, expected_shapes
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.open import open_checkpoint

NAME = "decoder.layers.1.wqkv.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "damaged"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def content(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """What a checkpoint says, however its files are laid out."""
    tensors = load_file(folder / WEIGHTS_FILE)
    return json.loads((folder / CONFIG_FILE).read_text()), {n: t.numpy().tobytes() for n, t in tensors.items()}


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replaces, adds or (None) removes tensors; dots in names are written as two underscores."""
    tensors = load_file(folder / WEIGHTS_FILE)
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS_FILE)


def test_model_is_the_same_when_saved_and_loaded(tiny_model: Blt, tiny_checkpoint: Path) -> None:
    assert sorted(contents(tiny_checkpoint)) == [CONFIG_FILE, WEIGHTS_FILE]
    loaded = load_checkpoint(tiny_checkpoint)
    assert loaded.config == tiny_model.config == open_checkpoint(tiny_checkpoint).config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    expected = tiny_model.state_dict()
    assert loaded.state_dict().keys() == expected.keys() == expected_shapes(loaded.config).keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    assert torch.equal(loaded(ids)[0], tiny_model(ids)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_rounded_once_when_stored_in_16_bits(dtype: torch.dtype, either_model: Blt, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    save_checkpoint(folder, either_model, dtype)
    stored = load_file(folder / WEIGHTS_FILE)
    assert {t.dtype for t in stored.values()} == {dtype}
    for name, tensor in load_checkpoint(folder).state_dict().items():
        # Hash tables stay in 16 bits: blt-1b's would take 12 GB in fp32.
        assert tensor.dtype == (dtype if name == HASH_TABLE else torch.float32)
        assert torch.equal(tensor.float(), either_model.state_dict()[name].to(dtype).float()), name
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    wide = load_checkpoint(folder)
    wide.encoder.hash_embeddings.float()
    torch.testing.assert_close(load_checkpoint(folder)(ids)[0], wide(ids)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_patcher_stays_fp32_when_model_is_loaded_in_16_bits(dtype: torch.dtype, tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint, dtype=dtype)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if name.startswith("patcher.") else dtype), name


def test_error_names_folder_when_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: found no such folder, expected a checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file: found a file, expected a checkpoint"):
        load_checkpoint(tmp_path / "file")


def test_error_names_file_when_config_is_missing_or_wrong(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json: config field 'name'"):
        load_checkpoint(folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"found a folder with model\.safetensors, expected a checkpoint"):
        load_checkpoint(folder)


def test_error_names_file_when_weights_are_missing(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 1000, -1])
def test_error_names_file_when_weights_are_truncated(folder: Path, keep: int) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_checkpoint(folder)


def test_error_names_file_when_weights_are_something_else(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04pickle" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_checkpoint(folder)


def test_error_names_tensor_when_it_is_missing(folder: Path) -> None:
    edit_weights(folder, **{NAME.replace(".", "__"): None})
    with pytest.raises(CheckpointError, match=rf"do not fit the configuration: missing {NAME} \[96, 32\]"):
        load_checkpoint(folder)


def test_error_names_tensor_when_it_is_unknown(folder: Path) -> None:
    edit_weights(folder, decoder__color=torch.zeros(2, 3))
    with pytest.raises(CheckpointError, match=r"unknown decoder\.color \[2, 3\]"):
        load_checkpoint(folder)


def test_error_names_tensor_and_both_shapes_when_misshapen(folder: Path) -> None:
    edit_weights(folder, **{NAME.replace(".", "__"): torch.zeros(32, 96)})
    with pytest.raises(CheckpointError, match=rf"{NAME}: found shape \[32, 96\], expected \[96, 32\]"):
        load_checkpoint(folder)


def test_every_problem_is_told_when_config_is_of_another_model(folder: Path) -> None:
    data: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    data["cross_attn_k"] = 3
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for name in (
        "encoder.patch_projection",
        "decoder.patch_projection",
        "global_transformer.input_projection",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_error_names_tensor_when_type_is_wrong(dtype: torch.dtype, folder: Path) -> None:
    edit_weights(folder, **{NAME.replace(".", "__"): torch.zeros(96, 32, dtype=dtype)})
    with pytest.raises(CheckpointError, match=rf"{NAME}: found type \w+, expected one of F32, F16, BF16"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_error_names_tensor_when_a_weight_is_not_finite(value: float, folder: Path) -> None:
    tensor = load_file(folder / WEIGHTS_FILE)[NAME]
    tensor[3, 5] = value
    edit_weights(folder, **{NAME.replace(".", "__"): tensor})
    with pytest.raises(CheckpointError, match=rf"{NAME}: found NaN or infinite values"):
        load_checkpoint(folder)


def test_error_names_tensor_when_a_weight_overflows_the_loaded_type(folder: Path) -> None:
    tensor = load_file(folder / WEIGHTS_FILE)[NAME]
    tensor[3, 5] = 1e6
    edit_weights(folder, **{NAME.replace(".", "__"): tensor})
    load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=rf"{NAME}: found values beyond the range of float16 \(largest 1e\+06\)"):
        load_checkpoint(folder, dtype=torch.float16)


def test_weights_are_checked_without_reading_them(folder: Path) -> None:
    """Of a checkpoint larger than memory only the header is read."""
    open_checkpoint(folder)
    edit_weights(folder, **{NAME.replace(".", "__"): torch.full((96, 32), torch.nan)})
    open_checkpoint(folder)


class DiskFullError(OSError):
    """What a test raises in the middle of a write."""


def save_half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    path.write_bytes(b"half")
    raise DiskFullError("no space left on device")


def test_nothing_is_left_when_writing_fails(tiny_model: Blt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(DiskFullError):
        save_checkpoint(tmp_path / "new", tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_earlier_checkpoint_stays_when_writing_fails(
    folder: Path, tiny_encoder_model: Blt, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(DiskFullError):
        save_checkpoint(folder, tiny_encoder_model)
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("suffix", ["partial", "old"])
def test_leftovers_of_a_killed_save_do_not_matter(tiny_model: Blt, tmp_path: Path, suffix: str) -> None:
    """Killed while writing, or after the rename that makes room and before the one that fills it, or after both."""
    partial = tmp_path / f".model.fastblt-abc.{suffix}"
    partial.mkdir()
    (partial / WEIGHTS_FILE).write_bytes(b"half")
    save_checkpoint(tmp_path / "model", tiny_model)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
    load_checkpoint(tmp_path / "model")


def test_checkpoint_is_replaced_when_saved_again(folder: Path, tiny_encoder_model: Blt) -> None:
    save_checkpoint(folder, tiny_encoder_model)
    assert load_checkpoint(folder).config == tiny_encoder_model.config


@pytest.mark.parametrize("moves", [0, 1])
def test_folder_is_never_a_mixture_when_replacing_is_interrupted(
    folder: Path, tiny_model: Blt, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """A kill between two renames leaves the old model or the new one, not a rule with foreign weights."""
    rule = dataclasses.replace(tiny_model.config.patching, threshold=0.25)
    other = Blt(dataclasses.replace(tiny_model.config, patching=rule))
    other.load_state_dict({n: p + 1.0 for n, p in tiny_model.state_dict().items()})
    save_checkpoint(folder.parent / "new", other)
    old, new = content(folder), content(folder.parent / "new")

    rename, done = os.rename, 0

    def interrupted(source: Path, target: Path) -> None:
        nonlocal done
        done += 1
        if done == moves + 1:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, other)
    found = content(folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["damaged", "new"]
    assert found in (old, new), "config.json of one model, model.safetensors of the other"
