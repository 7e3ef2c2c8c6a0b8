from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

trt = pytest.importorskip("tensorrt_rtx")

from fastblt.export.bundle_writer import export_bundle  # noqa: E402
from fastblt.export.tensorrt_build import TensorRtError, TensorRtGraph  # noqa: E402
from fastblt.runtime.bundle import GRAPH_FILES, GraphSpec, load_config, load_manifest  # noqa: E402

CAPACITY = {"slots": 1024, "pool_slots": 512}
ROWS = (1, 9, 256)
TARGETS = ("SM86", "SM89", "SM120")
PARTS = list(GRAPH_FILES)


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def bundle(request: pytest.FixtureRequest, shipped_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in each type that TensorRT has attention kernels for; the patcher is fp32 in both."""
    folder = tmp_path_factory.mktemp("tensorrt") / request.param
    export_bundle(shipped_checkpoint, folder, dtype=request.param, verify=False)
    return folder


def parse(bundle: Path, part: str) -> tuple[TensorRtGraph, GraphSpec]:
    spec = load_manifest(bundle).graphs[part]
    return TensorRtGraph(bundle / spec.file, CAPACITY), spec


def build(bundle: Path, part: str) -> tuple[bytes, int]:
    """An engine for all targets, and the bytes of the weights that it holds."""
    graph, spec = parse(bundle, part)
    before = load_config(bundle).hash.context - 1
    few = (1, 3, 64)
    ranges = {
        "rows": ROWS,
        "context_rows": (ROWS[0] + before, ROWS[1] + before, ROWS[2] + before),
        "patches": few,
        "latents": few,
    }
    initializers = onnx.load(bundle / spec.file).graph.initializer
    tables = sum(numpy_helper.to_array(w).nbytes for w in initializers if "embeddings" in w.name)
    return graph.build(ranges, TARGETS), spec.weight_bytes + tables


@pytest.mark.parametrize("part", PARTS)
def test_engine_builds_for_all_targets_without_a_gpu(bundle: Path, part: str) -> None:
    engine, weights = build(bundle, part)
    # The weights once, and kernels for three architectures.
    assert weights < len(engine) < weights + 10e6


def test_engine_builds_when_hash_tables_are_in_the_graph(shipped_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(shipped_checkpoint, bundle, dtype="fp16", hash_tables="graph", verify=False)
    engine, weights = build(bundle, "encoder")
    assert weights < len(engine) < weights + 10e6


@pytest.mark.parametrize("part", PARTS)
def test_caches_are_updated_in_place_when_parsed(bundle: Path, part: str) -> None:
    graph, spec = parse(bundle, part)
    network = graph.network
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    pairs = {}
    for layer in layers:
        assert layer.type != trt.LayerType.SCATTER, f"{layer.name}: a copy of the cache"
        if layer.type == trt.LayerType.KV_CACHE_UPDATE:
            cache, update = layer.get_input(0), layer.get_output(0)
            # TensorRT gives both one address when they are the network's input and output.
            assert cache.is_network_input
            assert update.is_network_output
            assert tuple(cache.shape) == tuple(update.shape)
            assert cache.dtype == update.dtype
            pairs[cache.name] = (update.name, tuple(cache.shape))
    expected = {
        t.name: (f"{t.name}_out", tuple(CAPACITY.get(str(size), size) for size in t.shape))
        for t in spec.inputs
        if t.role in ("cache", "pool")
    }
    assert pairs == expected
    assert len(pairs) == sum(t.role in ("cache_update", "pool_update") for t in spec.outputs)


@pytest.mark.parametrize("part", PARTS)
def test_network_has_the_inputs_and_outputs_of_the_manifest_when_parsed(bundle: Path, part: str) -> None:
    graph, spec = parse(bundle, part)
    network = graph.network
    kinds = {"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16, "int64": trt.int64}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for found, expected in ((inputs, spec.inputs), (outputs, spec.outputs)):
        assert [t.name for t in found] == [t.name for t in expected]
        assert [t.dtype for t in found] == [kinds[t.dtype] for t in expected]
        for tensor, described in zip(found, expected, strict=True):
            assert not tensor.is_shape_tensor
            fixed = [CAPACITY.get(str(size), size) for size in described.shape]
            assert [size if isinstance(size, int) else -1 for size in fixed] == list(tensor.shape)


def test_attention_is_one_layer_when_types_have_a_kernel(bundle: Path) -> None:
    attentions = {}
    for part in PARTS:
        graph, _ = parse(bundle, part)
        layers = [graph.network.get_layer(i) for i in range(graph.network.num_layers)]
        found = [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
        for layer in found:
            layer.__class__ = trt.IAttentionInputLayer
            # Only the fp32 patcher may fall back to matrix products.
            assert layer.attention.decomposable == (part == "patcher")
            assert layer.attention.mask is not None
        attentions[part] = len(found)
    config = load_config(bundle)
    assert attentions == {
        "patcher": config.patcher.layers,
        "encoder": config.encoder.layers + 1,  # and the pooling
        "global": config.global_transformer.layers,
        "decoder": 2 * config.decoder.layers,  # each block has a cross-attention
    }


def test_error_is_the_compilers_when_a_graph_is_not_for_tensorrt(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / GRAPH_FILES["patcher"])
    path = tmp_path / "odd.onnx"
    swish = next(node for node in model.graph.node if node.op_type == "Swish")
    swish.op_type = "BitwiseNot"
    onnx.save(model, path)
    with pytest.raises(TensorRtError, match=r"odd\.onnx: TensorRT-RTX cannot parse it: .*BitwiseNot"):
        TensorRtGraph(path, CAPACITY)


def test_error_is_the_compilers_when_caches_have_no_fixed_size(bundle: Path) -> None:
    with pytest.raises(TensorRtError, match="static sequence length"):
        TensorRtGraph(bundle / GRAPH_FILES["decoder"], {})
