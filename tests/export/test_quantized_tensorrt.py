"""Quantized graphs compile with TensorRT-RTX for every SM that has their types, and weights stay small in engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_files import SharedFiles

pytest.importorskip("tensorrt_rtx")

from fastblt.calibration.bundle_quantizer import Quantizer, Recipe, layers_of
from fastblt.calibration.heldout import load_prompts
from fastblt.calibration.precision import parse_scheme
from fastblt.calibration.request import RecordingSetting
from fastblt.calibration.sensitivity import assignment, groups_of
from fastblt.calibration.trace_recorder import record
from fastblt.calibration.trace_store import TraceStore, model_digest
from fastblt.export.engine_compiler import CompileRequest, compile_bundle
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.presets import preset
from fastblt.runtime.bundle.engines import EngineFolder
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, load_library

LIBRARY = load_library("tensorrt-rtx")
pytestmark = pytest.mark.usefixtures("patchers_once")
PARTS = ("encoder", "global", "decoder")


@pytest.fixture(scope="module")
def source(
    small_stacks: Path, exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TraceStore]:
    """A checkpoint in fp16, and traces of it."""
    bundle = exported(small_stacks, dtype="fp16")
    prompts = tuple(prompt.data[:48] for prompt in load_prompts("web")[:2])
    traces = tmp_path_factory.mktemp("quantized-tensorrt") / "traces"
    return bundle, record(bundle, traces, model_digest(load_manifest(bundle)), RecordingSetting(prompts, 32, 24))


@pytest.fixture(scope="module")
def wide_bundle(make_model: Callable[..., Blt], shared_files: SharedFiles, exported: Callable[..., Path]) -> Path:
    """One layer of blt-1b's global transformer in fp16, whose engine is measured, between small stacks."""
    config, narrow = preset("blt-1b"), preset("tiny")
    stacks = {name: getattr(narrow, name) for name in ("patcher", "encoder", "decoder")}
    stacks["global_transformer"] = config.global_transformer
    cut = {name: dataclasses.replace(stack, layers=1) for name, stack in stacks.items()}
    hashes = dataclasses.replace(config.hash, rows=100)

    def write(folder: Path) -> None:
        save_checkpoint(folder, make_model(dataclasses.replace(config, **cut, hash=hashes)))

    return exported(shared_files.make("wide", write), dtype="fp16")


def quantize(bundle: Path, store: TraceStore | None, out: Path, scheme_name: str, block: int | None = None) -> Path:
    scheme = parse_scheme(scheme_name, block)
    groups = groups_of(list(layers_of(bundle, PARTS)), scheme)
    out.mkdir()
    Quantizer(bundle, bundle, store, Recipe()).write(out, assignment([(g, scheme.precision) for g in groups]))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "block", "sms"),
    [
        *(("w8", 0, (86, 89, 120)), ("w4", 32, (86, 89, 120))),
        *(("int8", None, (86, 89, 120)), ("fp8", None, (89, 120))),
    ],
)
def test_every_quantized_graph_compiles(
    scheme: str,
    block: int | None,
    sms: tuple[int, ...],
    source: tuple[Path, TraceStore],
    tmp_path: Path,
    report_engines: Callable[..., None],
) -> None:
    out = quantize(*source, tmp_path / "out", scheme, block)
    folder = compile_bundle(out, LIBRARY, CompileRequest(sms, (512,)))
    report_engines(f"{source[0].name} in {scheme}", folder)
    assert {engine.part for engine in folder.engines} == {"patcher", *PARTS}
    for engine in folder.engines:
        spec = load_manifest(out).graphs[engine.part]
        caches = {t.name for t in spec.inputs if t.role in ("cache", "pool")}
        assert set(engine.aliases.values()) == (set() if engine.part == "global" else caches)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "part_of_fp16"), [("w8", 0.5), ("w4", 0.282)])
def test_weights_stay_packed_in_engines(
    scheme: str,
    part_of_fp16: float,
    wide_bundle: Path,
    tmp_path: Path,
    compile_part: Callable[..., EngineFolder],
    report_engines: Callable[..., None],
) -> None:
    """The engine of the only wide graph is as large as the small weights, and kernels."""
    out = quantize(wide_bundle, None, tmp_path / "out", scheme)
    folder = compile_part(out, "global", CompileRequest((89,), (512,)), tmp_path)
    report_engines(f"one layer of blt-1b's global transformer in {scheme}", folder)
    before, after = (load_manifest(bundle).graphs["global"].weight_bytes for bundle in (wide_bundle, out))
    assert after == pytest.approx(part_of_fp16 * before, rel=0.02)
    assert after < folder.engines[0].bytes < after + 15e6


def test_types_that_a_target_lacks_are_named(source: tuple[Path, TraceStore], tmp_path: Path) -> None:
    out = quantize(*source, tmp_path / "out", "fp8")
    with pytest.raises(TensorRtError, match=r"sm: found 86, expected 89 or newer: .* has layers in fp8"):
        compile_bundle(out, LIBRARY, CompileRequest((86, 89), (512,)))
    assert not (out / "engines").exists()
