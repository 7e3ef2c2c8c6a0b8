import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.inspect import PARTS, WEIGHTS_FILE, estimated_gb, part_of, read_weights
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.parameters import count_parameters
from fastblt.models.presets import preset
from fastblt.runtime.bundle import GRAPH_FILES, load_manifest


def inspect(path: Path) -> str:
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def row(text: str, name: str) -> str:
    """The line of a table that begins with ``name``, one space between its cells."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(name))


def test_checkpoint_is_described(tiny_checkpoint: Path, tiny_model: Blt) -> None:
    text = inspect(tiny_checkpoint)
    config = tiny_model.config
    assert text.startswith(f"checkpoint {tiny_checkpoint}: tiny\n")
    assert row(text, "encoder ") == "encoder 1 32 2 48 24 500000"
    assert row(text, "global ") == "global 2 64 2 96 all 500000"
    assert f"close above {config.patching.threshold:g} nats, of at most 6 bytes" in text
    assert "2 of 97 rows x 32 (n-grams of 3, 4 bytes)" in text
    parameters = sum(p.numel() for p in tiny_model.parameters())
    assert row(text, "total ") == f"total {parameters:,} {4 * parameters / 1e6:.2f}"
    assert "warning" not in text
    assert "estimated weight traffic for 512 bytes: ar " in text


def test_weights_fit_counted_parameters(either_model: Blt, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", either_model)
    stored = read_weights(tmp_path / "c" / WEIGHTS_FILE)
    counts = count_parameters(either_model.config)
    assert {part: stored.elements[part] for part in PARTS} == {
        part: getattr(counts, name) for part, name in PARTS.items()
    }
    assert stored.bytes["global"] == 4 * counts.global_transformer
    assert set(stored.dtypes.values()) == {"F32"}


def test_warning_tells_when_weights_do_not_fit_configuration(
    tiny_model: Blt, make_model: Callable[..., Blt], tmp_path: Path
) -> None:
    config = tiny_model.config
    other = dataclasses.replace(config, hash=dataclasses.replace(config.hash, rows=50))
    save_checkpoint(tmp_path / "c", make_model(other))
    config.save(tmp_path / "c" / "config.json")
    assert "has 3200 elements of hash embeddings, config.json expects 6208" in inspect(tmp_path / "c")


def test_damaged_weights_are_one_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", WEIGHTS_FILE):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes()[:300_000])
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / WEIGHTS_FILE}: not a readable safetensors file")


def test_bundle_is_described(tiny_bundle: Path) -> None:
    text = inspect(tiny_bundle)
    manifest = load_manifest(tiny_bundle)
    assert text.startswith(f"bundle {tiny_bundle}: tiny, fp32, opset {manifest.opset}, hash tables in ")
    size = sum(entry["bytes"] for entry in manifest.files.values())
    assert f"{size / 1e6:.2f}" in text
    for part, file in GRAPH_FILES.items():
        assert row(text, f"{file} ")
        for spec in (*manifest.graphs[part].inputs, *manifest.graphs[part].outputs):
            assert spec.name in text
    assert "not verified" not in text


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("patcher.layers.0.wo.weight", "patcher"),
        ("patcher.tok_embeddings.weight", "byte embeddings"),
        ("encoder.hash_embeddings.weight", "hash embeddings"),
        ("encoder.patch_projection.weight", "encoder"),
        ("global_transformer.layers.1.ffn_norm.weight", "global"),
        ("decoder.output.weight", "decoder"),
    ],
)
def test_tensor_belongs_to_part(tensor: str, part: str) -> None:
    assert part_of(tensor) == part


def test_estimate_is_papers_formula() -> None:
    # The paper's BLT-D 1B row has 512 decoder calls and 250 patches; here 512 bytes are 128 patches.
    config = preset("blt-d-1b")
    counts = count_parameters(config)
    expected = 2 * (512 * counts.decoder + 128 * (counts.encoder + counts.global_transformer)) / 1e9
    assert estimated_gb(config, 1, 0) == pytest.approx(expected)
    rounds = 512 / 8.28
    calls = 2 * (rounds * 9 * counts.decoder + rounds * (counts.encoder + counts.global_transformer)) / 1e9
    assert estimated_gb(config, 8.28, 8) == pytest.approx(calls, rel=0.02)


def test_encoder_runs_on_every_byte_when_decoder_reads_its_states() -> None:
    config = preset("blt-1b")
    counts = count_parameters(config)
    expected = 2 * (512 * (counts.decoder + counts.encoder) + 128 * counts.global_transformer) / 1e9
    assert estimated_gb(config, 1, 0) == pytest.approx(expected)
