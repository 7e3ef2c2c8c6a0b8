"""Checkpoints with a draft decoder: converting them, and files that do not fit together."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.export.bundle_writer import export_bundle
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint, save_checkpoint
from fastblt.models.formats.convert import convert
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.open import open_checkpoint

WEIGHTS = "model.safetensors"


def convert_by_command(source: Path, out: Path, layout: str) -> str:
    result = CliRunner().invoke(app, ["convert", str(source), str(out), "--to", layout])
    assert result.exit_code == 0, result.output
    return " ".join(result.stderr.split())


def test_transformers_gets_the_model_without_its_draft_decoder(
    tiny_mixed_checkpoint: Path, tiny_encoder_checkpoint: Path, tiny_encoder_model: Blt, tmp_path: Path
) -> None:
    noted = convert_by_command(tiny_mixed_checkpoint, tmp_path / "mixed", "transformers")
    assert "note: transformers has no draft decoder: its weights were left out, all others are unchanged" in noted
    convert(open_checkpoint(tiny_encoder_checkpoint), tmp_path / "plain", "transformers")
    assert (tmp_path / "mixed" / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()
    back = load_checkpoint(tmp_path / "mixed")
    assert back.config == dataclasses.replace(tiny_encoder_model.config, name="tiny-mixed")


def test_own_layout_keeps_the_draft_decoder(tiny_mixed_checkpoint: Path, tmp_path: Path) -> None:
    assert "note" not in convert_by_command(tiny_mixed_checkpoint, tmp_path / "copy", "fastblt")
    assert (tmp_path / "copy" / "config.json").read_text() == (tiny_mixed_checkpoint / "config.json").read_text()
    found, expected = load_file(tmp_path / "copy" / WEIGHTS), load_file(tiny_mixed_checkpoint / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def edit(folder: Path, model: Blt, **tensors: torch.Tensor | None) -> Path:
    """Write the checkpoint with some of its tensors, by name with ``__`` for a dot, replaced or (None) missing."""
    save_checkpoint(folder, model)
    stored = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        plain = name.replace("__", ".")
        assert plain in stored
        del stored[plain]
        if tensor is not None:
            stored[plain] = tensor
    save_file(stored, folder / WEIGHTS)
    return folder


A, B = "draft__layers__1__wo__lora_a", "draft__layers__1__wo__lora_b"
NAME = "draft.layers.1.wo"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: torch.zeros(3, 64)}, f"{NAME}.lora_a: found shape [3, 64], expected [3, 32]"),
        ({A: torch.zeros(5, 32)}, f"{NAME}.lora_a: found shape [5, 32], expected [3, 32]"),
        ({B: torch.zeros(64, 3)}, f"{NAME}.lora_b: found shape [64, 3], expected [32, 3]"),
        ({B: None}, f"missing {NAME}.lora_b [32, 3]"),
        ({"draft__norm__weight": None}, "missing draft.norm.weight [32]"),
        ({"draft__tok_embeddings__weight": torch.zeros(260, 32)}, "found shape [260, 32], expected [261, 32]"),
        ({B: torch.zeros(32, 3, dtype=torch.int64)}, f"{NAME}.lora_b: found type I64, expected one of F32"),
    ],
)
def test_draft_of_another_model_is_refused_by_name(
    tiny_mixed_model: Blt, tmp_path: Path, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    folder = edit(tmp_path / "mixed", tiny_mixed_model, **tensors)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith(f"{folder}: tensors do not fit the configuration: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), rf"{NAME}.lora_b: found NaN or infinite values, expected finite weights"),
        (1e5, rf"{NAME}.weight: found values beyond the range of float16"),
    ],
)
def test_draft_that_cannot_be_merged_is_refused_at_export(
    tiny_mixed_model: Blt, tmp_path: Path, value: float, message: str
) -> None:
    folder = edit(tmp_path / "mixed", tiny_mixed_model, **{B: torch.full((32, 3), value)})
    with pytest.raises(CheckpointError, match=message):
        export_bundle(folder, tmp_path / "bundle", dtype="fp16", verify=False)
    assert not (tmp_path / "bundle").exists()


def test_draft_without_a_configuration_of_it_is_refused(tiny_mixed_model: Blt, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_mixed_model)
    tiny_mixed_model.config.without_draft.save(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"unknown draft\.cross_layers\.0\.norm_q\.weight \[32\]"):
        open_checkpoint(tmp_path)
