import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.inspect_facts import PARTS, part_of, read_facts
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import WEIGHTS_FILE, save_checkpoint
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.formats.convert import convert
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.parameters import count_parameters
from fastblt.runtime.backends.cpu.buffers import buffer_bytes
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import GRAPH_FILES, load_manifest
from fastblt.runtime.measure.replay.paper import estimates


def inspect(path: Path | str, *options: str) -> str:
    result = CliRunner().invoke(app, ["inspect", str(path), *options])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def row(text: str, name: str) -> str:
    """The line of a table that begins with ``name``, one space between its cells."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(name))


def test_checkpoint_is_described(tiny_checkpoint: Path, tiny_model: Blt) -> None:
    text = inspect(tiny_checkpoint)
    config = tiny_model.config
    assert text.startswith(f"{tiny_checkpoint}: fastblt checkpoint, tiny\n")
    assert row(text, "encoder ") == "encoder 1 32 2 48 24 500000"
    assert row(text, "global ") == "global 2 64 2 96 all 500000"
    assert f"close above {config.patching.threshold:g} nats, of at most 6 bytes" in text
    assert "2 of 97 rows x 32 (n-grams of 3, 4 bytes)" in text
    parameters = sum(p.numel() for p in tiny_model.parameters())
    assert row(text, "total ") == f"total {parameters:,} {4 * parameters / 1e6:.2f}"
    assert "estimated weight traffic for 512 bytes of text\n" in text
    estimated = {each.point.method: each.gb for each in estimates(config)}
    found = text.partition("estimated weight traffic")[2]
    for method, gb in estimated.items():
        assert row(found, f"{method} ").startswith(f"{method} {gb:.4g}")
    assert "2.05 bytes per patch" in text
    assert "91 % of drafts kept" in row(found, "s:8 ")


@pytest.mark.parametrize("layout", ["transformers", "random"])
def test_any_layout_is_described(tiny_encoder_model: Blt, tmp_path: Path, layout: str) -> None:
    path = "random:tiny"
    if layout == "transformers":
        save_checkpoint(tmp_path / "own", tiny_encoder_model, torch.bfloat16)
        path = str(tmp_path / "theirs")
        convert(open_checkpoint(tmp_path / "own"), tmp_path / "theirs", "transformers")
    text = inspect(path)
    kind = {"transformers": "transformers BltForCausalLM, tiny-encoder", "random": "random weights, tiny-random"}
    assert text.startswith(f"{path}: {kind[layout]}\n")
    assert row(text, "global ").startswith("global 2 64 2 96")


def test_models_without_an_entropy_model_are_described(
    tiny_encoder_config: BltConfig, make_model: Callable[..., Blt], tmp_path: Path
) -> None:
    rules = {
        "every byte is one": PatchingConfig(max_patch_length=1, mode="static"),
        "of 3 bytes (no entropy model)": PatchingConfig(max_patch_length=3, mode="static"),
        "close at space-like bytes, of any length": PatchingConfig(mode="space"),
    }
    for text, rule in rules.items():
        config = dataclasses.replace(tiny_encoder_config, patcher=None, patching=rule, document_masks=True)
        save_checkpoint(tmp_path / "c", make_model(config))
        found = inspect(tmp_path / "c")
        assert text in found
        assert "\npatcher" not in found
        assert "self-attention stays inside them" in found


def test_memory_is_told_for_every_type_and_for_max_bytes(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    facts = read_facts(str(tiny_checkpoint), 1000)
    assert [memory.dtype for memory in facts.memory] == ["fp32", "fp16", "bf16"]
    text = inspect(tiny_checkpoint, "--max-bytes", "1000")
    device = row(text, "device ").split()
    weights, buffers = facts.memory[0].weights, facts.memory[0].buffers
    assert device[1:3] == [f"{sum(weights.values()) / 1e6:.2f}", f"{sum(buffers.values()) / 1e6:.2f}"]
    # The graphs' files hold the same weights and a few kilobytes of structure.
    bundle = read_facts(str(tiny_bundle), 1000).memory[0]
    assert bundle.buffers == buffers
    for part, size in weights.items():
        assert size < bundle.weights[part] < size + 200_000
    assert facts.memory[0].tables == pytest.approx(bundle.tables, abs=1000)


def test_draft_decoder_is_described(tiny_mixed_checkpoint: Path, tiny_mixed_bundle: Path) -> None:
    """A checkpoint has matrices of low rank, of which its bundle has the full ones."""
    text = inspect(tiny_mixed_checkpoint)
    assert "mixed, blocks of up to 4 bytes" in text
    assert "the decoder's matrices and products of rank 3" in text
    assert "matrices of its own" in inspect(tiny_mixed_bundle)
    checkpoint, bundle = (read_facts(str(path), 1000) for path in (tiny_mixed_checkpoint, tiny_mixed_bundle))
    before, after = checkpoint.memory[0], bundle.memory[0]
    assert list(before.weights) == list(after.weights) == ["patcher", "encoder", "global", "decoder", "draft"]
    for part, size in before.weights.items():
        assert size < after.weights[part] < size + 200_000
    assert before.buffers == after.buffers
    assert checkpoint.traffic_gb == bundle.traffic_gb
    assert list(bundle.traffic_gb) == ["ar", "s:8"]  # the paper's blocks have 8 bytes
    counts = count_parameters(checkpoint.config)
    assert row(text, "draft ").startswith("draft 2 32 ")
    assert checkpoint.stored["draft"].bytes == 4 * counts.draft


def test_bytes_of_a_sequence_are_those_that_it_takes(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    for max_bytes in (300, 1000):
        facts = read_facts(str(tiny_bundle), max_bytes)
        found = facts.memory[0].sequence_bytes
        assert read_facts(str(tiny_checkpoint), max_bytes).memory[0].sequence_bytes == found
        assert found == {"cpu": buffer_bytes(facts.config, 4, max_bytes), "cuda": sum(facts.memory[0].buffers.values())}
    text = inspect(tiny_bundle, "--max-bytes", "1000")
    assert row(text, "a sequence on a CPU").split()[-1] == f"{found['cpu'] / 1e6:.2f}"
    assert row(text, "a sequence on a GPU").split()[-1] == f"{found['cuda'] / 1e6:.2f}"


def test_hash_tables_of_16_bits_stay_so_in_a_bundle_of_any_type(tiny_model: Blt, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "narrow", tiny_model, torch.bfloat16)
    counts = count_parameters(tiny_model.config)
    for memory in read_facts(str(tmp_path / "narrow"), 1000).memory:
        bytes_of_others = memory.tables - 2 * counts.hash_embeddings
        assert bytes_of_others == (4 if memory.dtype == "fp32" else 2) * 260 * tiny_model.config.encoder.dim


def test_facts_are_written_as_json(tiny_bundle: Path, tmp_path: Path) -> None:
    inspect(tiny_bundle, "--json", str(tmp_path / "facts.json"))
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert BltConfig.from_dict(facts["config"]) == Bundle.open(tiny_bundle, check=False).config
    assert facts["kind"] == "bundle"
    assert facts["memory"][0]["device"] > 0
    assert set(facts["memory"][0]["sequence_bytes"]) == {"cpu", "cuda"}
    assert facts["manifest"]["dtype"] == "fp32"
    assert set(facts["traffic_gb"]) == {"ar", "s:8"}


def test_every_method_of_a_block_diffusion_model_is_estimated(shipped_checkpoint: Path) -> None:
    found = read_facts(str(shipped_checkpoint), 4096).traffic_gb
    assert list(found) == ["ar", "s:8", "d:8@0.7", "dv:8@one"]
    assert found["ar"] > found["s:8"] > found["d:8@0.7"]


def test_weights_fit_counted_parameters(either_model: Blt, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", either_model)
    stored = read_facts(str(tmp_path / "c"), 100).stored
    counts = count_parameters(either_model.config)
    assert {part: each.bytes for part, each in stored.items()} == {
        part: 4 * getattr(counts, name) for part, name in PARTS.items() if getattr(counts, name)
    }
    assert {each.dtype for each in stored.values()} == {"F32"}


def test_damaged_weights_are_one_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", WEIGHTS_FILE):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes()[:300_000])
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / WEIGHTS_FILE}: not a readable safetensors file")


def test_patcher_is_refused_when_a_bundle_is_inspected(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tiny_bundle), "--patcher", str(tiny_checkpoint)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tiny_bundle}: found a patcher {tiny_checkpoint} for a bundle")


def test_bundle_is_described(tiny_bundle: Path) -> None:
    text = inspect(tiny_bundle)
    manifest = load_manifest(tiny_bundle)
    assert text.startswith(f"{tiny_bundle}: bundle, tiny, fp32, opset {manifest.opset}, hash tables in ")
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
