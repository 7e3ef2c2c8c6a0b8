from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastblt.models.tokens import encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.engines import EngineFolder
from fastblt.runtime.bundle.manifest import GRAPH_FILES, BundleError, load_manifest
from fastblt.runtime.measure.audit.comparison import audit
from fastblt.runtime.measure.audit.ties import TIE_BOUND
from fastblt.runtime.sequence.session import Session

#: Operators that TensorRT 10.3's parser lists, of those that could be needed here.
ALLOWED = {
    "Add", "And", "ArgMax", "Cast", "CastLike", "Concat", "Constant", "Cos", "Div", "Exp", "Expand", "Gather",
    "GatherElements",
    "GreaterOrEqual", "Identity", "Less", "LogSoftmax", "MatMul", "Mod", "Mul", "Neg", "Range", "ReduceMax",
    "ReduceMean", "ReduceSum", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze",
    "Sub", "Sum", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


@pytest.fixture(scope="module", params=["embedding", "encoder"])
def lowered(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Path:
    """Bundles of both tiny models; export has compared them with the eager model."""
    name = {"embedding": "tiny_checkpoint", "encoder": "tiny_encoder_checkpoint"}[request.param]
    return exported(request.getfixturevalue(name), lowered=True, verify=True)


def test_graphs_hold_nothing_newer_than_opset_18_when_lowered(lowered: Path) -> None:
    manifest = load_manifest(lowered)
    assert (manifest.operators, manifest.opset) == ("lowered", 18)
    for spec in manifest.graphs.values():
        model = onnx.load(lowered / spec.file)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert model.ir_version == 9
        assert {node.op_type for node in model.graph.node} <= ALLOWED
        onnx.checker.check_model(model, full_check=True)


def test_outputs_are_new_rows_when_lowered(lowered: Path) -> None:
    for spec in load_manifest(lowered).graphs.values():
        caches = [t for t in spec.inputs if t.role in ("cache", "pool")]
        rows = {t.name: t for t in spec.outputs if t.role in ("cache_rows", "pool_rows")}
        assert set(rows) == {f"{cache.name}_rows" for cache in caches}
        for cache in caches:
            shape = rows[f"{cache.name}_rows"].shape
            assert (shape[:2], shape[3]) == (("batch", 1), cache.shape[3])
            assert shape[2] in ("rows", "patches")


def test_text_is_eagers_when_lowered(lowered: Path) -> None:
    eager = BltRuntime(EagerBackend.load(lowered, "cpu", 300, 1))
    found = BltRuntime(OnnxRuntimeBackend.load(lowered, 300, 1))
    prompts = [(str(i), np.random.default_rng(i).bytes(70)) for i in range(3)]
    rows = audit(eager, [(found, method) for method in ("ar", "s:5", "auto")], prompts, 100, TIE_BOUND["fp32"])
    assert [(row.method, row.identical, row.faults) for row in rows] == [("ar", 3, []), ("s:5", 3, []), ("auto", 3, [])]


def test_old_slots_do_not_matter_when_they_will_be_overwritten(lowered: Path) -> None:
    """A graph must not read slots from the first new row on: they may hold rows of a text that was rewound."""
    backend = OnnxRuntimeBackend.load(lowered, 300, 1)
    session = Session(backend)
    session.append(encode(b"some text that is long enough", bos=False))
    expected = session.score().logits.copy()
    sequence: Any = session.sequence
    for graph in sequence.graphs.values():
        for buffer in graph.caches.buffers.values():
            buffer.array[...] = 1e3
    session.clear()
    session.append(encode(b"some text that is long enough", bos=False))
    np.testing.assert_array_equal(session.score().logits, expected)


@pytest.mark.usefixtures("patchers_once")
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_lowered_graphs_compile_with_tensorrt_rtx_in_every_type(
    small_stacks: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    dtype: str,
    report_engines: Callable[[str, EngineFolder], None],
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from fastblt.export.engine_compiler import CompileRequest, compile_bundle
    from fastblt.runtime.bundle.tensorrt_library import load_library

    shutil.copytree(exported(small_stacks, dtype=dtype, lowered=True), tmp_path / "bundle")
    folder = compile_bundle(tmp_path / "bundle", load_library("tensorrt-rtx"), CompileRequest((86,), (512,)))
    report_engines(small_stacks.name, folder)
    assert folder.operators == "lowered"
    assert {engine.part for engine in folder.engines} == set(GRAPH_FILES)
    assert not any(engine.aliases or engine.decomposed or engine.appends for engine in folder.engines)
    assert [engine.part for engine in folder.engines if engine.any_slots] == ["global"]


def test_manifest_without_operators_is_standard_and_unknown_ones_are_refused(lowered: Path, tmp_path: Path) -> None:
    data = json.loads((lowered / "manifest.json").read_text())
    for value, expected in ((None, "standard"), ("lowered", "lowered")):
        found = {name: item for name, item in data.items() if name != "operators"}
        found |= {} if value is None else {"operators": value}
        (tmp_path / "manifest.json").write_text(json.dumps(found))
        assert load_manifest(tmp_path).operators == expected
    (tmp_path / "manifest.json").write_text(json.dumps(data | {"operators": "raised"}))
    with pytest.raises(BundleError, match="entry 'operators': found 'raised', expected one of standard, lowered"):
        load_manifest(tmp_path)
