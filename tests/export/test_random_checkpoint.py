from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.export.random_checkpoint import usable_checkpoint, write_random_checkpoint
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.config import ConfigError
from fastblt.models.presets import preset
from fastblt.runtime.bundle import load_config, load_manifest


def test_weights_are_scaled_as_training_begins_and_norms_are_one(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", preset("tiny"))
    for name, p in load_checkpoint(tmp_path / "checkpoint").named_parameters():
        if p.ndim < 2:
            assert (p == 1).all(), name
            continue
        scale = 0.1 if "hash_embeddings" in name else 0.5 if "embeddings" in name else 1.0
        assert p.std().item() == pytest.approx(scale * p.shape[1] ** -0.5, rel=0.1), name
        assert abs(p.mean().item()) < 0.1 * p.shape[1] ** -0.5, name


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint(tmp_path / name, preset("tiny"), seed)
    a, b, c = (load_checkpoint(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["decoder.output.weight"], c["decoder.output.weight"])
    matrices = [value for value in a.values() if value.ndim == 2]
    assert len({float(value[0, 0]) for value in matrices}) == len(matrices)


def test_long_tensors_are_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_checkpoint(tmp_path / "whole", preset("tiny"))
    monkeypatch.setattr("fastblt.export.random_checkpoint._CHUNK", 1000)
    write_random_checkpoint(tmp_path / "pieces", preset("tiny"))
    whole, pieces = (load_checkpoint(tmp_path / name).state_dict() for name in ("whole", "pieces"))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_preset_stands_for_a_folder_that_vanishes(tmp_path: Path) -> None:
    with usable_checkpoint(Path("random:tiny"), tmp_path / "new" / "bundle") as folder:
        assert folder.parent.parent == tmp_path / "new"
        assert load_checkpoint(folder).config.name == "tiny-random"
    assert list((tmp_path / "new").iterdir()) == []
    with usable_checkpoint(tmp_path, tmp_path / "bundle") as folder:
        assert folder == tmp_path


def test_unknown_preset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset 'huge': unknown, expected one of tiny, "):
        usable_checkpoint(Path("random:huge"), tmp_path / "bundle").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_command_exports_random_weights_and_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "random:tiny", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.stderr or result.exception
    assert "bundle: tiny-random, fp32" in result.stdout
    assert load_manifest(tmp_path / "bundle").model == load_config(tmp_path / "bundle").name == "tiny-random"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    failed = CliRunner().invoke(app, ["export", "random:", str(tmp_path / "other")])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: preset '': unknown")
