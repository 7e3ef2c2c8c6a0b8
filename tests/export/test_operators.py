"""Tests that graphs hold operators that GPUs have: kernels of ONNX Runtime's CUDA provider, layers of TensorRT."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from fastblt.export.graph_builder import BltGraph
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest

BF16 = onnx.TensorProto.BFLOAT16
VARIANTS = list(itertools.product(("tiny_checkpoint", "tiny_encoder_checkpoint"), ("fp32", "bf16"), (False, True)))


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def graphs(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> dict[str, onnx.ModelProto]:
    """The graphs of a bundle by part, with the types of all values."""
    checkpoint, dtype, lowered = request.param
    bundle = exported(request.getfixturevalue(checkpoint), dtype=dtype, lowered=lowered)
    specs = load_manifest(bundle).graphs
    return {part: onnx.shape_inference.infer_shapes(onnx.load(bundle / spec.file)) for part, spec in specs.items()}


def test_maximum_has_a_cuda_kernel_in_every_type(graphs: dict[str, onnx.ModelProto]) -> None:
    """The CUDA provider has no ReduceMax of bf16, and needs cuDNN for the others: only the encoder has one."""
    for part, model in graphs.items():
        kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        found = [kinds[node.input[0]] for node in model.graph.node if node.op_type == "ReduceMax"]
        assert len(found) == (part == "encoder")
        assert BF16 not in found


def test_nothing_that_is_computed_from_a_shape_is_a_number_of_the_model(graphs: dict[str, onnx.ModelProto]) -> None:
    """ONNX Runtime computes with shapes on the CPU, and a CUDA graph cannot hold a copy from there."""
    for model in graphs.values():
        on_host = {name for node in model.graph.node if node.op_type == "Shape" for name in node.output}
        for node in model.graph.node:
            if not on_host.isdisjoint(node.input):
                assert node.op_type in ("Add", "Concat", "Range", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze")
                on_host |= set(node.output) if node.op_type not in ("Range", "Reshape", "Slice") else set()


def test_swish_is_made_of_older_operators(graphs: dict[str, onnx.ModelProto]) -> None:
    """TensorRT 10.15 and 10.16 know every operator of opset 24 that graphs need, except Swish."""
    assert not any(node.op_type == "Swish" for model in graphs.values() for node in model.graph.node)


def test_lowered_bf16_graphs_are_verified(tiny_checkpoint: Path, exported: Callable[..., Path]) -> None:
    """Numbers of a bf16 graph are initializers, which its fp32 twin can hold."""
    exported(tiny_checkpoint, dtype="bf16", lowered=True, verify=True)


def test_bundle_with_swish_still_runs(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    exported: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from fastblt.export.bundle_writer import export_bundle

    def swish(graph: BltGraph, x: ir.Value) -> ir.Value:
        return graph.op.Swish(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(BltGraph, "swish", swish)
    export_bundle(tiny_checkpoint, tmp_path / "old", verify=False)
    old, new = (BltRuntime.from_pretrained(bundle, max_bytes=100) for bundle in (tmp_path / "old", tiny_bundle))
    assert bytes(old.generate(b"some text", 40)) == bytes(new.generate(b"some text", 40))
