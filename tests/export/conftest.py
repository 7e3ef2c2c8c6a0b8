"""Provides an earlier bundle to replace, and reports what was compiled: sizes and build seconds of engines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from properties import THOROUGH
from shared_files import SharedFiles

from fastblt.export.engine_compiler import CompileRequest, _Compiler
from fastblt.export.tensorrt_build import TensorRtGraph
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.presets import preset
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import EngineFolder, ShapeProfile
from fastblt.runtime.bundle.manifest import GRAPH_FILES
from fastblt.runtime.bundle.tensorrt_library import load_library
from fastblt.runtime.progress import no_progress


@pytest.fixture
def report_engines(record_property: Callable[[str, object], None]) -> Callable[[str, EngineFolder], None]:
    """``report_engines(name, folder)``: list a folder of engines at the end of the run."""

    def report(name: str, folder: EngineFolder) -> None:
        for engine in folder.engines:
            sms = ", ".join(str(sm) for sm in folder.sms)
            line = (
                f"{name}, {folder.dtype}, {folder.operators}, SM {sms}: {engine.file} {engine.bytes / 1e6:.1f} MB "
                f"in {engine.build_seconds:.1f} s, {len(engine.aliases)} caches in place"
            )
            record_property("engine", line)

    return report


@pytest.fixture
def patchers_once(monkeypatch: pytest.MonkeyPatch, shared_files: SharedFiles) -> None:
    """Compile a patcher only where none with the same graph, shapes and SMs has been compiled in this test run.

    Patchers are fp32 in bundles of every type and scheme, and fp32 graphs take longest to compile.
    """
    build = TensorRtGraph.build

    def once(
        self: TensorRtGraph, profiles: Sequence[ShapeProfile], sms: Sequence[int], *args: Any, **options: Any
    ) -> memoryview:
        if self.path.name != GRAPH_FILES["patcher"]:
            return build(self, profiles, sms, *args, **options)
        files = sorted(self.path.parent.glob(f"{self.path.name}*"))  # and weights beside the graph
        inputs = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        shapes = [list(tensor.shape) for tensor in inputs]
        asked = json.dumps([shapes, list(sms), [dataclasses.asdict(profile) for profile in profiles]])
        key = hashlib.sha256(b"".join(file.read_bytes() for file in files) + asked.encode()).hexdigest()

        def write(folder: Path) -> None:
            folder.mkdir()
            (folder / "engine").write_bytes(build(self, profiles, sms, *args, **options))
            found = {"decomposed": self.decomposed, "activations": self.activation_bytes}
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")

        folder = shared_files.make(f"patcher-{key[:16]}", write)
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        self.decomposed, self._log.activations = found["decomposed"], [found["activations"]]
        return memoryview((folder / "engine").read_bytes())

    monkeypatch.setattr(TensorRtGraph, "build", once)


@pytest.fixture(scope="session")
def compile_part() -> Callable[[Path, str, CompileRequest, Path], EngineFolder]:
    """``compile_part(bundle, part, request, folder)``: the engine of one graph alone, where the others add nothing."""

    def compile_one(bundle: Path, part: str, request: CompileRequest, folder: Path) -> EngineFolder:
        opened, library = Bundle.open(bundle), load_library("tensorrt-rtx")
        manifest = dataclasses.replace(opened.manifest, graphs={part: opened.manifest.graphs[part]})
        compiler = _Compiler(bundle, opened.config, manifest, library, request, folder, no_progress)
        return compiler.run(folder, Event())

    return compile_one


@pytest.fixture(scope="session")
def small_stacks(shipped_checkpoint: Path, make_model: Callable[..., Blt], shared_files: SharedFiles) -> Path:
    """A checkpoint to compile: the sizes of the shipped one, and one layer a stack, for the others are like it.

    The nightly profile compiles the shipped one itself.
    """
    if THOROUGH:
        return shipped_checkpoint
    config = preset("blt-d-8m")
    stacks = {name: getattr(config, name) for name in ("patcher", "encoder", "global_transformer", "decoder")}
    cut = {name: dataclasses.replace(stack, layers=1) for name, stack in stacks.items()}
    model = make_model(dataclasses.replace(config, **cut))
    return shared_files.make("small-stacks", lambda folder: save_checkpoint(folder, model))


@pytest.fixture
def old_bundle(tiny_encoder_bundle: Path, tmp_path: Path) -> Path:
    """A complete bundle of another model; nothing else is in its parent folder."""
    folder = tmp_path / "out" / "bundle"
    shutil.copytree(tiny_encoder_bundle, folder)
    return folder
