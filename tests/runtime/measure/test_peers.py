"""Benchmarks beside transformers' `BltForCausalLM`, on the bundle's own weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shared_files import SharedFiles
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.export.bundle_writer import export_bundle
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.tokens import EOS_ID
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.peers import load_peer
from fastblt.runtime.measure.peers.transformers import PeerError, TransformersPeer
from fastblt.runtime.methods import MethodError


@pytest.fixture(scope="module")
def comparable(tiny_encoder_config: BltConfig, make_model: Callable[..., Blt]) -> Blt:
    """A BLT without a longest patch: transformers' rule for it is another one."""
    rule = dataclasses.replace(tiny_encoder_config.patching, max_patch_length=None)
    return make_model(dataclasses.replace(tiny_encoder_config, patching=rule))


@pytest.fixture(scope="module")
def folder(comparable: Blt, shared_files: SharedFiles) -> Path:
    """Its checkpoint and its bundle."""

    def write(path: Path) -> None:
        save_checkpoint(path / "checkpoint", comparable)
        export_bundle(path / "checkpoint", path / "bundle")

    return shared_files.make("comparable", write)


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
@pytest.mark.parametrize("prompt", [b"", b"A", b"The quick brown fox jumps over the lazy dog"])
def test_transformers_writes_the_same_bytes(folder: Path, source: str, prompt: bytes) -> None:
    peer = load_peer(folder / source, "transformers", "cpu", 1)
    ours = BltRuntime.from_pretrained(folder / "bundle", provider="cpu", max_bytes=200, threads=1)
    expected = ours.generate(prompt, 40, method="ar")
    found = peer.generate(prompt, 40, method="ar")
    assert (found.data, found.tokens, found.finish) == (expected.data, expected.tokens, expected.finish)
    assert set(found.stats.nfe.values()) == {len(found.tokens)}
    assert found.stats.new_bytes == expected.stats.new_bytes
    assert 0 < found.stats.first_byte_seconds < found.stats.total_seconds
    assert sum(found.stats.part_seconds.values()) < found.stats.total_seconds
    assert len(found.stats.byte_seconds) == len(found.tokens) - 1


def test_transformers_writes_the_same_bytes_in_batches(folder: Path) -> None:
    peer = TransformersPeer.load(folder / "bundle", "cpu", 1)
    ours = BltRuntime.from_pretrained(folder / "bundle", provider="cpu", max_bytes=200, threads=1)
    prompts = [b"The quick brown fox", b"In the beginning of", b"0123456789012345678"]
    found = peer.generate_batch(prompts, 24)
    assert found.texts == [ours.generate(each, 24, method="ar", stop_at_eos=False).data for each in prompts]
    assert set(found.stats.nfe.values()) == {24}
    assert (found.stats.rounds, found.stats.new_bytes) == (24, sum(map(len, found.texts)))
    with pytest.raises(PeerError, match="found prompts of 1 to 2 bytes, expected one length"):
        peer.generate_batch([b"a", b"bc"], 4)


def test_transformers_stops_at_eos_like_ours(comparable: Blt, make_model: Callable[..., Blt]) -> None:
    model = make_model(comparable.config)
    model.decoder.output.weight[EOS_ID] = model.decoder.output.weight.abs().mean() * 40
    model.decoder.norm.weight.abs_()
    found = [TransformersPeer(model, 1).generate(text, 20, method="ar") for text in (b"one", b"two", b"three", b"four")]
    ended = [one for one in found if one.finish == "eos"]
    assert ended
    assert all(one.tokens[-1] == EOS_ID and len(one.data) < 20 for one in ended)


def test_half_precision_does_not_round_the_patcher(comparable: Blt) -> None:
    assert comparable.patcher is not None
    model = copy.deepcopy(comparable).half()
    model.patcher = copy.deepcopy(comparable.patcher)
    peer = TransformersPeer(model, 1)
    assert torch.equal(peer._model.model.patcher.lm_head.weight, comparable.patcher.output.weight)
    assert peer._model.lm_head.weight.dtype == torch.float16
    assert len(peer.generate(b"The quick", 6, method="ar").data) == 6


def test_bench_compares_with_transformers_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    command = ["bench", str(folder / "bundle"), "--methods", "ar,s:4", "--against", "transformers,eager"]
    sizes = ["--prompts", "2", "--prompt-bytes", "16", "--max-new-bytes", "12", "--json", str(tmp_path / "bench.json")]
    result = CliRunner().invoke(app, [*command, *sizes])
    assert result.exit_code == 0, result.stderr or result.exception
    rows = {(row["backend"], row["method"]): row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert len(rows) == 4
    assert all(row["identical_to_ar"] for row in rows.values())
    theirs, ours = rows["transformers", "ar"], rows["onnxruntime", "ar"]
    assert theirs["bytes"] == ours["bytes"]
    assert theirs["nfe_global"] == theirs["nfe_decoder"] == ours["nfe_decoder"] > ours["nfe_global"]
    assert theirs["us_per_byte"]["global"] > 0


def test_error_says_what_transformers_cannot_run(
    folder: Path, tiny_checkpoint: Path, comparable: Blt, make_model: Callable[..., Blt]
) -> None:
    with pytest.raises(CheckpointError, match="transformers' BLT has no decoder_input 'embedding'"):
        load_peer(tiny_checkpoint, "transformers", "cpu", 1)
    masked = make_model(dataclasses.replace(comparable.config, document_masks=True))
    with pytest.raises(PeerError, match="transformers has no document masks"):
        TransformersPeer(masked)
    for rule, message in (
        (PatchingConfig(mode="space"), "transformers has no space patches"),
        (PatchingConfig(max_patch_length=3, mode="static"), "transformers has no static patches"),
        (PatchingConfig(5.0, 8), "max_patch_length is another rule"),
    ):
        patcher = comparable.config.patcher if rule.mode == "entropy" else None
        config = dataclasses.replace(comparable.config, patcher=patcher, patching=rule)
        with pytest.raises(PeerError, match=message):
            TransformersPeer(make_model(config))
    with pytest.raises(MethodError, match="found 's:4', expected 'ar'"):
        load_peer(folder / "bundle", "transformers", "cpu", 1).generate(b"a", 4, method="s:4")


def test_error_says_what_to_install_when_transformers_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PeerError, match="pip install transformers"):
        load_peer(folder / "bundle", "transformers", "cpu", 1)


def test_error_says_that_a_peer_is_not_replayed(folder: Path) -> None:
    command = ["bench", str(folder / "bundle"), "--methods", "ar", "--against", "transformers", "--replay", "patch=4"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "expected backends only" in result.stderr
