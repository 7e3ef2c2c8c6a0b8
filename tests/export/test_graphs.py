from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE, GRAPH_FILES, GraphSpec, TensorSpec, load_manifest

PARTS = list(GRAPH_FILES)
#: Variants of a bundle: decoder input, type, place of the hash tables.
VARIANTS = list(itertools.product(("embedding", "encoder"), ("fp32", "fp16", "bf16"), ("host", "graph")))
#: Capacity of the caches, of the pool and of the latents that the tests bind.
SLOTS, POOL_SLOTS, LATENTS = 64, 48, 5

GetBundle = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def get_bundle(tiny_checkpoint: Path, tiny_encoder_checkpoint: Path, exported: Callable[..., Path]) -> GetBundle:
    """``get_bundle(decoder_input, dtype, hash_tables)``; none of them was compared with the eager model."""
    checkpoints = {"embedding": tiny_checkpoint, "encoder": tiny_encoder_checkpoint}
    return lambda decoder_input, dtype, hash_tables: exported(
        checkpoints[decoder_input], dtype=dtype, hash_tables=hash_tables
    )


@pytest.fixture(scope="module", params=VARIANTS, ids=["-".join(variant) for variant in VARIANTS])
def bundle(request: pytest.FixtureRequest, get_bundle: GetBundle) -> Path:
    """Every variant of a tiny bundle in turn."""
    return get_bundle(*request.param)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_nodes(inner)


def tensor_spec(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    """Name, numpy type and shape, as a manifest tells them."""
    tensor = value.type.tensor_type
    sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), sizes


def manifest_spec(tensor: TensorSpec) -> tuple[str, str, tuple[int | str, ...]]:
    return tensor.name, tensor.dtype, tensor.shape


@pytest.mark.parametrize("part", PARTS)
def test_graph_passes_checker_when_exported(bundle: Path, part: str) -> None:
    path = bundle / GRAPH_FILES[part]
    onnx.checker.check_model(str(path), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    known = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    made = [name for node in inferred.graph.node for name in node.output]
    assert set(made) <= set(known), "a value whose type cannot be inferred"
    assert all(known[name].type.tensor_type.HasField("shape") for name in made)


@pytest.mark.parametrize("part", PARTS)
def test_graph_is_standard_onnx_of_the_pinned_opset_when_exported(bundle: Path, part: str) -> None:
    model = onnx.load(bundle / GRAPH_FILES[part])
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 24)]
    assert model.ir_version <= 11
    assert len(model.functions) == 0
    nodes = list(all_nodes(model.graph))
    assert {node.domain for node in nodes} == {""}
    for node in nodes:
        assert onnx.defs.has(node.op_type, ""), node.op_type
        assert onnx.defs.get_schema(node.op_type, 24, "").since_version <= 24


@pytest.mark.parametrize("part", PARTS)
def test_manifest_describes_inputs_and_outputs_as_the_file_has_them(bundle: Path, part: str) -> None:
    spec = load_manifest(bundle).graphs[part]
    graph = onnx.load(bundle / spec.file).graph
    assert [manifest_spec(t) for t in spec.inputs] == [tensor_spec(v) for v in graph.input]
    assert [manifest_spec(t) for t in spec.outputs] == [tensor_spec(v) for v in graph.output]
    assert all(t.role for t in (*spec.inputs, *spec.outputs))


@pytest.mark.parametrize("part", PARTS)
def test_each_cache_has_an_update_of_its_shape_when_exported(bundle: Path, part: str) -> None:
    spec = load_manifest(bundle).graphs[part]
    updates = {"cache": "cache_update", "pool": "pool_update"}
    expected = {(f"{t.name}_out", t.dtype, t.shape, updates[t.role]) for t in spec.inputs if t.role in updates}
    found = {(t.name, t.dtype, t.shape, t.role) for t in spec.outputs if t.role in updates.values()}
    assert found == expected
    assert sum(role == "cache_update" for *_, role in found) >= 2
    assert sum(role == "pool_update" for *_, role in found) == (part == "encoder")
    # TensorRT takes caches of four axes, each scattered to once; which sizes calls choose is the same in all of them.
    for _, _, shape, _ in found:
        assert len(shape) == 4
        assert [axis for axis, size in enumerate(shape) if isinstance(size, str)] == [0, 2]
    graph = onnx.load(bundle / spec.file).graph
    scattered = {(node.input[0], node.output[0]) for node in graph.node if node.op_type == "TensorScatter"}
    assert scattered == {(name.removesuffix("_out"), name) for name, *_ in found}


@pytest.mark.parametrize("part", PARTS)
def test_types_are_those_asked_for_when_exported(bundle: Path, part: str) -> None:
    manifest = load_manifest(bundle)
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    expected = "float32" if part == "patcher" else names[manifest.dtype]
    spec = manifest.graphs[part]
    assert {t.dtype for t in spec.inputs} == {"int64", expected}
    graph = onnx.load(bundle / spec.file).graph
    kinds = {w.name: str(onnx.helper.tensor_dtype_to_np_dtype(w.data_type)) for w in graph.initializer}
    matrices = {name for name in kinds if name.endswith(".weight.T") or "embeddings" in name}
    assert {kinds[name] for name in matrices} == {expected}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {expected}


class Caller:
    """Feeds a graph like a runtime does, over plain arrays; caches are carried from call to call."""

    def __init__(self, bundle: Path, part: str, context: int) -> None:
        self.spec: GraphSpec = load_manifest(bundle).graphs[part]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(bundle / self.spec.file)
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.context = context
        self.caches: dict[str, NDArray[Any]] = {}

    def sizes(self, rows: int) -> dict[str, int]:
        """What each symbolic size is in a call of ``rows``; every row is a patch of its own."""
        return {
            "batch": 1,
            "rows": rows,
            "patches": rows,
            "context_rows": rows + self.context - 1,
            "latents": rows if self.spec.file == GRAPH_FILES["global"] else LATENTS,
            "slots": SLOTS,
            "pool_slots": POOL_SLOTS,
        }

    def call(self, position: int, rows: int, data: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs; ``data`` holds the inputs that are not derived from the position."""
        at = np.arange(position, position + rows)[None]
        derived = {
            "position": at,
            "write_index": at[0, :1],
            "pool_index": at[0, :1],
            "visible_start": np.zeros_like(at),
            "visible_end": at + 1,
            "patch_start": at,
            "patch_end": at + 1,
        }
        feed = {}
        for tensor in self.spec.inputs:
            shape = self.shape(tensor, rows)
            if tensor.role in ("cache", "pool"):
                feed[tensor.name] = self.caches.setdefault(tensor.name, np.zeros(shape, numpy_dtype(tensor.dtype)))
                continue
            if tensor.role == "latent_kv":
                random = np.random.default_rng(7)
                feed[tensor.name] = random.standard_normal(shape).astype(tensor.dtype)
                continue
            value = data[tensor.name] if tensor.name in data else derived[tensor.role]
            assert value.shape == shape, tensor.name
            feed[tensor.name] = value.astype(tensor.dtype)
        names = [t.name for t in self.spec.outputs]
        found = dict(zip(names, self.session.run(names, feed), strict=True))
        for tensor in self.spec.outputs:
            assert found[tensor.name].shape == self.shape(tensor, rows), tensor.name
            assert str(found[tensor.name].dtype) == tensor.dtype
            assert np.isfinite(found[tensor.name]).all()
        for name in self.caches:
            self.caches[name] = found.pop(f"{name}_out")
        return found

    def shape(self, tensor: TensorSpec, rows: int) -> tuple[int, ...]:
        """The sizes of a tensor in a call."""
        return tuple(size if isinstance(size, int) else self.sizes(rows)[size] for size in tensor.shape)


@pytest.mark.parametrize("hash_tables", ["host", "graph"])
@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
@pytest.mark.parametrize("part", PARTS)
def test_rows_do_not_depend_on_the_length_of_calls(
    get_bundle: GetBundle, part: str, decoder_input: str, hash_tables: str, tiny_config: BltConfig
) -> None:
    bundle, context, total = get_bundle(decoder_input, "fp32", hash_tables), tiny_config.hash.context, 21
    random = np.random.default_rng(3)
    tokens = random.integers(4, 260, size=(1, context - 1 + total))

    def data(spec: GraphSpec, first: int, rows: int) -> dict[str, NDArray[Any]]:
        """The inputs of ``rows`` rows from ``first`` on, other than those of the position."""
        found: dict[str, NDArray[Any]] = {}
        for tensor in spec.inputs:
            if tensor.role == "ids_with_history":
                found[tensor.name] = tokens[:, first : first + rows + context - 1]
            elif tensor.role == "ids":
                found[tensor.name] = tokens[:, first : first + rows]
            elif tensor.role == "latent_index":
                found[tensor.name] = np.arange(first, first + rows)[None] * LATENTS // total
            elif tensor.role in ("embedding", "patch_embeddings", "states"):
                width = tensor.shape[2]
                assert isinstance(width, int)
                values = np.random.default_rng(5).standard_normal((1, total, width))
                found[tensor.name] = values[:, first : first + rows].astype(np.float32)
        return found

    whole, pieces = Caller(bundle, part, context), Caller(bundle, part, context)
    expected = whole.call(0, total, data(whole.spec, 0, total))
    position, found = 0, []
    for rows in (1, 3, 17):
        found.append(pieces.call(position, rows, data(pieces.spec, position, rows)))
        position += rows
    assert position == total
    for name, value in expected.items():
        axis = 0 if name == "latent_kv" else 1
        joined = np.concatenate([piece[name] for piece in found], axis=axis)
        np.testing.assert_allclose(joined, value, atol=2e-5, err_msg=name)
        assert np.ptp(value) > 0, f"{name} is the same everywhere"
    for name, cache in whole.caches.items():
        np.testing.assert_allclose(pieces.caches[name], cache, atol=2e-5, err_msg=name)
        assert not cache[0, 0, total:].any(), f"{name}: slots after the last row were written to"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
def test_generation_is_the_same_when_hash_tables_are_in_the_graph(
    get_bundle: GetBundle, decoder_input: str, dtype: str
) -> None:
    host, graph = (get_bundle(decoder_input, dtype, place) for place in ("host", "graph"))
    assert (host / EMBEDDINGS_FILE).is_file()
    assert not (graph / EMBEDDINGS_FILE).exists()
    table = "encoder.hash_embeddings.weight"
    for bundle, inside in ((host, False), (graph, True)):
        weights = {w.name for w in onnx.load(bundle / GRAPH_FILES["encoder"]).graph.initializer}
        assert (table in weights) == inside
        assert load_manifest(bundle).hash_tables == ("graph" if inside else "host")
    prompt = bytes(range(0, 250, 7))
    found, expected = (
        BltRuntime.from_pretrained(bundle, provider="cpu", max_bytes=200, threads=1).generate(
            prompt, 120, method="ar", stop_at_eos=False
        )
        for bundle in (graph, host)
    )
    assert len(expected.data) == 120
    assert len(set(expected.data)) > 5
    assert found.data == expected.data
