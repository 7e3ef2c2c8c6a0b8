"""``random:PRESET``: weights that are made when they are read."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.config import ConfigError
from fastblt.models.formats import random_store
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.random_store import RandomStore
from fastblt.models.presets import preset
from fastblt.runtime.bundle.bundle import Bundle

TABLE = "encoder.hash_embeddings.weight"


def test_weights_are_scaled_as_training_begins_and_norms_are_one() -> None:
    for name, p in load_checkpoint("random:tiny").named_parameters():
        if p.ndim < 2:
            assert (p == 1).all(), name
            continue
        scale = 0.1 if "hash_embeddings" in name else 0.5 if "embeddings" in name else 1.0
        assert p.std().item() == pytest.approx(scale * p.shape[1] ** -0.5, rel=0.1), name
        assert abs(p.mean().item()) < 0.1 * p.shape[1] ** -0.5, name


def test_weights_depend_on_the_seed_alone() -> None:
    a, b, c = (RandomStore(preset("tiny"), seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.tensors)
    assert not torch.equal(a.read("decoder.output.weight"), c.read("decoder.output.weight"))
    matrices = [a.read(name) for name, tensor in a.tensors.items() if len(tensor.shape) == 2]
    assert len({float(value[0, 0]) for value in matrices}) == len(matrices)


def test_rows_are_those_of_the_whole_tensor_when_it_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_store, "_CHUNK", 1000)
    store = RandomStore(preset("tiny"))
    whole = store.read(TABLE)
    assert whole.shape == store.tensors[TABLE].shape
    assert torch.unique(whole).numel() > 0.99 * whole.numel()
    for first, last in ((0, 1), (30, 33), (31, 32), (5, 190)):
        assert torch.equal(store.rows(TABLE, first, last), whole[first:last])
    rows = torch.tensor([150, 3, 3, 193, 31, 62])
    assert torch.equal(store.gather(TABLE, rows), whole[rows])


def test_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match="preset 'huge': unknown, expected one of tiny, "):
        open_checkpoint("random:huge")


def test_command_exports_random_weights_and_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "random:tiny", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.stderr or result.exception
    assert "bundle: tiny-random, fp32" in result.stdout
    exported = Bundle.open(tmp_path / "bundle")
    assert exported.manifest.model == exported.config.name == "tiny-random"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    failed = CliRunner().invoke(app, ["export", "random:", str(tmp_path / "other")])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: preset '': unknown")
