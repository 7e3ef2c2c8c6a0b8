from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from properties import THOROUGH
from shared_files import SharedFiles

trt = pytest.importorskip("tensorrt_rtx")

from fastblt.calibration.bundle_quantizer import Quantizer, Recipe, layers_of  # noqa: E402
from fastblt.calibration.precision import parse_scheme  # noqa: E402
from fastblt.calibration.sensitivity import assignment, groups_of  # noqa: E402
from fastblt.export.bundle_writer import export_bundle  # noqa: E402
from fastblt.export.engine_compiler import MOST_SEQUENCES, PROFILES, CompileRequest, compile_bundle  # noqa: E402
from fastblt.export.tensorrt_build import TensorRtGraph  # noqa: E402
from fastblt.models.blt import Blt  # noqa: E402
from fastblt.models.checkpoint import save_checkpoint  # noqa: E402
from fastblt.models.config import StackConfig  # noqa: E402
from fastblt.models.presets import preset  # noqa: E402
from fastblt.runtime.backends.gpu.sliding import cache_slots, position_count, whole_steps  # noqa: E402
from fastblt.runtime.bundle.bundle import Bundle  # noqa: E402
from fastblt.runtime.bundle.engines import EngineFolder, EngineSpec, ShapeProfile, load_engine_folder  # noqa: E402
from fastblt.runtime.bundle.manifest import GRAPH_FILES, GraphSpec, load_manifest, sha256_of  # noqa: E402
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, load_library  # noqa: E402

#: Tells of engines at the end of a run (conftest.py).
Report = Callable[[str, EngineFolder], None]
CAPACITY = {"slots": 1024, "pool_slots": 512}
SMS = (86, 89, 120)
PARTS = list(GRAPH_FILES)
LIBRARY = load_library("tensorrt-rtx")
pytestmark = pytest.mark.usefixtures("patchers_once")


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def bundle(request: pytest.FixtureRequest, shipped_checkpoint: Path, exported: Callable[..., Path]) -> Path:
    """The shipped checkpoint in each type that TensorRT has attention kernels for; the patcher is fp32 in both."""
    return exported(shipped_checkpoint, dtype=request.param)


def parse(bundle: Path, part: str) -> tuple[TensorRtGraph, GraphSpec]:
    spec = load_manifest(bundle).graphs[part]
    return TensorRtGraph(LIBRARY, bundle / spec.file, CAPACITY), spec


def weights_of(bundle: Path, part: str) -> int:
    """Bytes of all weights of a graph, tables included."""
    model = onnx.load(bundle / load_manifest(bundle).graphs[part].file)
    return sum(numpy_helper.to_array(w).nbytes for w in model.graph.initializer)


def check_folder(bundle: Path, folder: EngineFolder, capacities: tuple[int, ...]) -> None:
    """Engines of every graph and capacity, as large as their weights, with every cache updated in place."""
    manifest = load_manifest(bundle)
    assert load_engine_folder(folder.path).to_dict() == folder.to_dict()
    assert (folder.target, folder.version, folder.sms) == ("tensorrt-rtx", trt.__version__, SMS)
    assert (folder.dtype, folder.operators) == (manifest.dtype, "standard")
    assert tuple(folder.capacities) == capacities
    assert all(set(parts) == set(manifest.graphs) for parts in folder.capacities.values())
    for engine in folder.engines:
        check_engine(bundle, folder.path / engine.file, engine)


def check_engine(bundle: Path, path: Path, engine: EngineSpec) -> None:
    """One engine: as large as its weights, every cache updated in place or bound in any size."""
    assert (path.stat().st_size, sha256_of(path)) == (engine.bytes, engine.sha256)
    weights = weights_of(bundle, engine.part)
    # The weights once, and kernels for all profiles and three architectures.
    assert weights < engine.bytes < weights + 25e6
    assert not (engine.decomposed and engine.part != "patcher")
    spec = load_manifest(bundle).graphs[engine.part]
    caches = {t.name for t in spec.inputs if t.role in ("cache", "pool")}
    assert engine.appends == engine.any_slots == (engine.part == "global")
    assert set(engine.aliases.values()) == (set() if engine.appends else caches)
    assert engine.activation_bytes
    assert [profile.name for profile in engine.profiles] == list(PROFILES)
    assert engine.build_seconds > 0


def test_every_graph_compiles_for_all_targets_without_a_gpu(
    bundle: Path, tmp_path: Path, report_engines: Report
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    folder = compile_bundle(tmp_path / "bundle", LIBRARY, CompileRequest(SMS, (512, 2048), sequences=MOST_SEQUENCES))
    report_engines("blt-d-8m", folder)
    check_folder(bundle, folder, (512, 2048))
    slots = {engine.file: (engine.slots, engine.pool_slots) for engine in folder.engines}
    # One engine serves both capacities. The pool holds a patch, a draft, a call.
    assert slots == {
        "entropy-448.engine": (448, 0),
        "encoder-448-192.engine": (448, 192),
        "global-2240.engine": (2240, 0),
        "decoder-448.engine": (448, 0),
    }


def few_layers(stack: StackConfig) -> StackConfig:
    return dataclasses.replace(stack, layers=min(stack.layers, 2 if THOROUGH else 1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"] if THOROUGH else ["fp16"])
def test_a_cut_of_blt_1b_compiles_for_all_targets_without_a_gpu(
    dtype: str, tmp_path: Path, report_engines: Report
) -> None:
    whole = preset("blt-1b")
    assert whole.patcher is not None
    config = dataclasses.replace(
        whole,
        patcher=few_layers(whole.patcher),
        encoder=few_layers(whole.encoder),
        global_transformer=few_layers(whole.global_transformer),
        decoder=few_layers(whole.decoder),
        # The tables stay on the host.
        hash=dataclasses.replace(whole.hash, rows=64),
    )
    save_checkpoint(tmp_path / "checkpoint", Blt(config))
    bundle = tmp_path / "bundle"
    export_bundle(tmp_path / "checkpoint", bundle, dtype=dtype, verify=False)
    folder = compile_bundle(bundle, LIBRARY, CompileRequest(SMS, (2048,), sequences=MOST_SEQUENCES))
    report_engines("a cut of blt-1b", folder)
    check_folder(bundle, folder, (2048,))


def test_engine_builds_when_hash_tables_are_in_the_graph(
    shipped_checkpoint: Path,
    exported: Callable[..., Path],
    compile_part: Callable[..., EngineFolder],
    tmp_path: Path,
) -> None:
    """The other graphs are those of a bundle with tables on the host, whose engines are built above."""
    host = load_manifest(exported(shipped_checkpoint, dtype="fp16"))
    bundle = exported(shipped_checkpoint, dtype="fp16", hash_tables="graph")
    manifest = load_manifest(bundle)
    same = [part for part, file in GRAPH_FILES.items() if manifest.files[file] == host.files[file]]
    assert same == ["patcher", "global", "decoder"]
    folder = compile_part(bundle, "encoder", CompileRequest(SMS, (512,), sequences=MOST_SEQUENCES), tmp_path)
    (engine,) = folder.engines
    assert (engine.slots, engine.pool_slots) == (448, 192)
    check_engine(bundle, tmp_path / engine.file, engine)


@pytest.mark.parametrize(("sms", "capacities"), [((), (256,)), ((89,), ())])
def test_request_without_a_gpu_or_a_capacity_is_refused(sms: tuple[int, ...], capacities: tuple[int, ...]) -> None:
    with pytest.raises(TensorRtError, match="found no SM or no capacity"):
        CompileRequest(sms, capacities)


@pytest.mark.parametrize(("sequences", "profiles"), [(1, 3), (3, 4)])
def test_engine_takes_as_many_sequences_as_asked_for(
    draft_bundle: Path,
    compile_part: Callable[..., EngineFolder],
    tmp_path: Path,
    sequences: int,
    profiles: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TensorRtGraph, "build", lambda *arguments: memoryview(b"not compiled"))
    request = CompileRequest((89,), (512,), sequences=sequences)
    (engine,) = compile_part(draft_bundle, "draft", request, tmp_path).engines
    assert [profile.name for profile in engine.profiles] == list(PROFILES)[:profiles]
    most = engine.profiles[-1].shapes
    assert [most[name][2][0] for name in ("positions", "write_index", "key_0")] == [sequences] * 3
    assert most["latent_kv"][2][0] == sequences * whole_steps(position_count(512))
    with pytest.raises(TensorRtError, match="sequences: found 17, expected 1 to 16"):
        dataclasses.replace(request, sequences=17)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CompileRequest((87,), (256,)), r"sm: found 87, expected one of 75, 80, 86, 89, 120, 121"),
        (CompileRequest((89,), (256,), dtype="fp32"), r"dtype: found 'fp32', expected '(fp16|bf16)'.*--dtype fp32"),
        (
            CompileRequest((89,), (256,), timing_cache=Path("timings")),
            "found one, but TensorRT-RTX measures no kernels",
        ),
    ],
)
def test_nothing_is_left_when_a_request_cannot_be_met(bundle: Path, request_: CompileRequest, message: str) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(TensorRtError, match=message):
        compile_bundle(bundle, LIBRARY, request_)
    assert sorted(bundle.rglob("*")) == before


def test_nothing_is_left_when_a_later_graph_cannot_be_compiled(
    small_stacks: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(exported(small_stacks, dtype="fp16"), bundle)
    file = bundle / GRAPH_FILES["encoder"]  # the second
    break_operator(file, file)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TensorRtError, match=r"encoder\.onnx: TensorRT-RTX .* node .*, operator BitwiseNot: "):
        compile_bundle(bundle, LIBRARY, CompileRequest((89,), (256,)))
    assert not (bundle / "engines").exists()


def break_operator(source: Path, target: Path) -> None:
    """Give a graph an operator that TensorRT does not have."""
    model = onnx.load(source)
    sigmoid = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    sigmoid.op_type = "BitwiseNot"
    onnx.save(model, target)


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
        t.name: (f"{t.name}_out", (-1, *(CAPACITY.get(str(size), size) for size in t.shape[1:])))
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
    attentions, single = {}, {}
    for part in PARTS:
        graph, _ = parse(bundle, part)
        layers = [graph.network.get_layer(i) for i in range(graph.network.num_layers)]
        found = [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
        for layer in found:
            layer.__class__ = trt.IAttentionInputLayer
            # A decoder row and the tokens of its latent: a batch of single rows.
            alone = layer.get_input(0).shape[2] == 1
            # Only those and the fp32 patcher may fall back to matrix products.
            assert layer.attention.decomposable == (part == "patcher" or alone)
            assert (layer.attention.mask is None) == alone
            single[part] = single.get(part, 0) + alone
        attentions[part] = len(found)
    config = Bundle.open(bundle, check=False).config
    assert attentions == {
        "patcher": config.patcher.layers,
        "encoder": config.encoder.layers + 1,  # and the pooling
        "global": config.global_transformer.layers,
        "decoder": 2 * config.decoder.layers,  # each block has a cross-attention
    }
    assert single == {"patcher": 0, "encoder": 0, "global": 0, "decoder": config.decoder.layers}


def test_attention_without_a_kernel_is_made_of_matrix_products(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One fixed row and heads of 32 have none; the compiler's own complaint is not shown."""
    graph, spec = parse(bundle, "encoder")
    one = {
        tensor.name: (
            (tuple(CAPACITY.get(str(size), 1 if isinstance(size, str) else size) for size in tensor.shape),) * 3
        )
        for tensor in spec.inputs
    }
    assert not graph.decomposed
    assert graph.build([ShapeProfile("one", one)], (89,)).nbytes > 0
    assert graph.decomposed
    assert "Myelin" not in capfd.readouterr().err


def test_caches_have_any_size_when_rows_are_appended(bundle: Path) -> None:
    """Attention stays one layer, and nothing else reads or writes a cache."""
    spec = load_manifest(bundle).graphs["global"]
    graph = TensorRtGraph(LIBRARY, bundle / spec.file, {}, spec)
    network = graph.network
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = [layer.type for layer in layers]
    config = Bundle.open(bundle, check=False).config
    assert kinds.count(trt.LayerType.ATTENTION_INPUT) == config.global_transformer.layers
    assert not {trt.LayerType.KV_CACHE_UPDATE, trt.LayerType.SCATTER} & set(kinds)
    caches = {t.name for t in spec.inputs if t.role == "cache"}
    inputs = [[layer.get_input(i) for i in range(layer.num_inputs)] for layer in layers]
    readers = [kind for kind, read in zip(kinds, inputs, strict=True) if caches & {t.name for t in read if t}]
    assert readers.count(trt.LayerType.CONCATENATION) == len(caches)
    assert set(readers) <= {trt.LayerType.CONCATENATION, trt.LayerType.SHAPE}
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    rows = {t.name: tuple(t.shape) for t in outputs if t.name.endswith("_rows")}
    assert rows == {f"{cache}_rows": (-1, 1, -1, config.global_transformer.dim) for cache in caches}


def test_error_names_node_and_operator_when_a_graph_is_not_for_tensorrt(bundle: Path, tmp_path: Path) -> None:
    break_operator(bundle / GRAPH_FILES["patcher"], tmp_path / "odd.onnx")
    with pytest.raises(TensorRtError, match=r"odd\.onnx: TensorRT-RTX .* cannot parse it: node .*BitwiseNot"):
        TensorRtGraph(LIBRARY, tmp_path / "odd.onnx", CAPACITY)


def test_error_is_the_compilers_when_caches_have_no_fixed_size(bundle: Path) -> None:
    with pytest.raises(TensorRtError, match="static sequence length"):
        TensorRtGraph(LIBRARY, bundle / GRAPH_FILES["decoder"], {})


@pytest.fixture(scope="module")
def draft_bundle(make_model: Callable[..., Blt], shared_files: SharedFiles, exported: Callable[..., Path]) -> Path:
    """The shipped sizes with one layer a stack, and a draft decoder."""
    config = preset("blt-d-8m")
    stacks = {name: getattr(config, name) for name in ("patcher", "encoder", "global_transformer", "decoder")}
    cut = {name: dataclasses.replace(stack, layers=1) for name, stack in stacks.items()}
    model = make_model(dataclasses.replace(config, **cut, decoder_input="mixed", draft_rank=4))
    checkpoint = shared_files.make("mixed-small-stacks", lambda folder: save_checkpoint(folder, model))
    return exported(checkpoint, dtype="fp16")


@pytest.mark.parametrize("scheme", ["", "w4"] if THOROUGH else [""])
def test_draft_decoder_compiles_for_all_targets_with_the_decoders_caches_in_place(
    draft_bundle: Path, scheme: str, compile_part: Callable[..., EngineFolder], tmp_path: Path
) -> None:
    bundle = draft_bundle
    if scheme:
        bundle = tmp_path / "quantized"
        bundle.mkdir()
        chosen = parse_scheme(scheme)
        groups = groups_of(list(layers_of(draft_bundle, ["draft"])), chosen)
        quantizer = Quantizer(draft_bundle, draft_bundle, None, Recipe())
        quantizer.write(bundle, assignment([(group, chosen.precision) for group in groups]))
    (engine,) = compile_part(bundle, "draft", CompileRequest(SMS, (512,), sequences=MOST_SEQUENCES), tmp_path).engines
    decoder = Bundle.open(bundle).config.decoder
    assert (engine.part, engine.slots) == ("draft", cache_slots(decoder, 512))
    assert len(engine.aliases) == 2 * decoder.layers
    check_engine(bundle, tmp_path / engine.file, engine)
