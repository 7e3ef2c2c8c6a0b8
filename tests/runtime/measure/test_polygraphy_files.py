"""Polygraphy itself reads what is written for it, and sees what was damaged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from polygraphy.comparator import RunResults
from polygraphy.json import load_json
from shared_files import SharedFiles

from fastblt.export.emulation import emulate_bf16
from fastblt.runtime.measure.verify import polygraphy_files
from fastblt.runtime.measure.verify.polygraphy_files import ATTENTION_SCRIPT, README, PolygraphyCall
from fastblt.runtime.measure.verify.reference import DeviceError

PROMPT = (
    b"In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness"
)
#: Runs the command lines on standard input in one process, since Polygraphy takes a second to import.
RUN = """\
import shlex, sys
from polygraphy.tools import main
for line in sys.stdin.read().splitlines():
    sys.argv = shlex.split(line)
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    print("status", status, flush=True)
"""


def run(lines: list[str]) -> list[tuple[int, str]]:
    """Exit status and output of each command line."""
    text = subprocess.run(
        [sys.executable, "-c", RUN], input="\n".join(lines), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout
    *pieces, rest = text.split("status ")
    statuses = [piece.split("\n", 1)[0] for piece in [*pieces[1:], rest]]
    assert len(statuses) == len(lines), text
    return [(int(status), piece) for status, piece in zip(statuses, pieces, strict=True)]


def damage(graph: Path, node: str) -> None:
    """Change the weights of a node's matrix product."""
    model = onnx.load(graph)
    (product,) = [each for each in model.graph.node if each.name == node]
    (weight,) = [each for each in model.graph.initializer if each.name in product.input]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, graph)


def product_of(graph: Path) -> str:
    """Name of a matrix product with weights in the middle of a graph."""
    model = onnx.load(graph)
    weights = {each.name for each in model.graph.initializer}
    names = [each.name for each in model.graph.node if each.op_type == "MatMul" and weights & set(each.input)]
    return names[len(names) // 2]


Written = tuple[Path, list[PolygraphyCall]]


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, shared_files: SharedFiles, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("polygraphy") / "files"
    return folder, polygraphy_files.write_polygraphy_files(tiny_bundle, folder, PROMPT)


def test_polygraphy_accepts_every_graph_and_refuses_a_damaged_weight(
    tiny_bundle: Path, written: Written, exported: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, calls = written
    assert [call.rows for call in calls if call.part == "decoder"] == [1, 8]
    half = exported(tiny_checkpoint, dtype="fp16", hash_tables="host")
    of_half = polygraphy_files.write_polygraphy_files(half, tmp_path / "half", PROMPT)
    damaged = shutil.copytree(tiny_bundle, tmp_path / "damaged")
    damage(damaged / "decoder.onnx", product_of(damaged / "decoder.onnx"))
    one_each = {call.part: call for call in calls}.values()
    assert [call.part for call in one_each] == ["patcher", "encoder", "global", "decoder"]
    lines = [call.commands(str(tiny_bundle), str(folder))[0] for call in one_each]
    lines += [call.commands(str(half), str(tmp_path / "half"))[0] for call in of_half[-1:]]
    lines += [calls[-1].commands(str(damaged), str(folder))[0]]
    *good, bad = run(lines)
    for status, output in good:
        assert status == 0, output
        assert "Pass Rate: 100.00%" in output
    assert bad[0] == 1
    assert "FAILED | Output: 'logits'" in bad[1]


def test_files_hold_the_real_types_and_caches_of_a_generation(written: Written, tiny_bundle: Path) -> None:
    folder, calls = written
    last = calls[-1]
    (inputs,) = load_json(str(folder / last.inputs))
    (results,) = RunResults.load(str(folder / last.outputs)).values()
    key, updated = inputs["key_0"], results[0]["key_0_out"]
    first = int(inputs["write_index"][0])
    assert key.any()
    assert np.array_equal(key[:, :, :first], updated[:, :, :first])
    assert not np.array_equal(key[:, :, first : first + last.rows], updated[:, :, first : first + last.rows])
    assert inputs["ids"].shape == (1, last.rows)
    readme = (folder / README).read_text(encoding="utf-8")
    assert all(line in readme for call in calls for line in call.commands('"$BUNDLE"'))
    assert {path.name for path in folder.iterdir()} == {
        README, ATTENTION_SCRIPT, *(name for call in calls for name in (call.inputs, call.outputs))
    }  # fmt: skip


def test_commands_for_tensorrt_name_the_sizes_that_it_must_know(written: Written, tiny_bundle: Path) -> None:
    _, calls = written
    _, sanitize, run_it = calls[-1].commands("bundle")
    assert sanitize.startswith("polygraphy surgeon sanitize bundle/decoder.onnx --override-input-shapes key_0:[1,1,")
    assert "--trt --trt-npps trt_attention.py --trt-min-shapes ids:[1,8] " in run_it
    assert " --trt-max-shapes ids:[1,16] " in run_it


def test_bf16_is_stored_as_tensors_of_pytorch(
    exported: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(tiny_checkpoint, dtype="bf16", hash_tables="host")
    calls = polygraphy_files.write_polygraphy_files(bundle, tmp_path / "files", PROMPT, emulate_bf16)
    for call in calls:
        assert [line.split()[1] for line in call.commands("b")][-1] == "run"
        assert any("--onnxrt" in line for line in call.commands("b")) == (call.part == "patcher")
    (inputs,) = load_json(str(tmp_path / "files" / calls[-1].inputs))
    graph = ir.load(bundle / calls[-1].graph).graph
    kinds = {value.name: value.dtype for value in graph.inputs}
    assert {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in inputs.items()} == {
        name: {"BFLOAT16": "bfloat16", "INT64": "int64", "FLOAT": "float32"}[kind.name] for name, kind in kinds.items()
    }
    assert inputs["key_0"].float().abs().max() > 0
    assert inputs["key_0"].dtype == torch.bfloat16
    monkeypatch.setattr(polygraphy_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"found a bf16 bundle and no PyTorch, .*: pip install 'fastblt\[export\]'$"):
        polygraphy_files.write_polygraphy_files(bundle, tmp_path / "other", PROMPT, emulate_bf16)


def test_nothing_is_left_when_writing_fails(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(polygraphy_files, "_readme", fail)
    with pytest.raises(OSError, match="disk full"):
        polygraphy_files.write_polygraphy_files(tiny_bundle, tmp_path / "files", PROMPT)
    assert list(tmp_path.iterdir()) == []
