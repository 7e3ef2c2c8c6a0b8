"""Stands in for TensorRT: it compiles nothing, and runs ONNX graphs with ONNX Runtime (see `fakes.tensorrt_engine`).

An "engine" is the graph, its profiles and its aliased pairs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from fakes.cuda import FakeCuda
from fakes.tensorrt_engine import MEMORY_BYTES, ICudaEngine, IExecutionContext
from fakes.tensorrt_values import (
    MAGIC,
    TYPES,
    BuilderFlag,
    ComputeCapability,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    ILogger,
    IProgressMonitor,
    IRuntimeCache,
    IRuntimeConfig,
    IStreamReaderV2,
    LayerType,
    NetworkDefinitionCreationFlag,
    Severity,
    TensorIOMode,
)


class Tensor:
    """Describes a tensor of a network."""

    def __init__(self, name: str, dtype: DataType | None) -> None:
        self.name, self.dtype = name, dtype


class IAttentionInputLayer:
    """Describes a layer; layers other than attention have this class too, since nothing here asks for another."""

    class Attention:
        decomposable = False
        mask: Tensor | None = None

    def __init__(self, node: onnx.NodeProto, types: dict[str, DataType]) -> None:
        kinds = {"Attention": LayerType.ATTENTION_INPUT, "TensorScatter": LayerType.KV_CACHE_UPDATE}
        self.type = kinds.get(node.op_type, LayerType.OTHER)
        self.name, self.attention = node.name, self.Attention()
        self._inputs = [Tensor(name, types.get(name)) for name in node.input]
        self._outputs = [Tensor(name, types.get(name)) for name in node.output]
        self.attention.mask = self._inputs[3] if len(self._inputs) > 3 else None

    def get_input(self, index: int) -> Tensor:
        return self._inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self._outputs[index]


class INetworkDefinition:
    model: onnx.ModelProto
    layers: list[IAttentionInputLayer]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> IAttentionInputLayer:
        return self.layers[index]

    def add_kv_cache_update(self) -> None:
        raise NotImplementedError

    def add_attention(self) -> None:
        raise NotImplementedError


class ParserError:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return "no importer"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    def parse(self, model: bytes, path: str) -> bool:
        proto = onnx.load_from_string(model)
        onnx.load_external_data_for_model(proto, str(Path(path).parent))
        graph = proto.graph
        types = {v.name: TYPES[v.type.tensor_type.elem_type] for v in (*graph.input, *graph.output)}
        self._network.model = proto
        self._network.layers = [IAttentionInputLayer(node, types) for node in graph.node]
        self._errors = [ParserError(node) for node in graph.node if node.op_type == "BitwiseNot"]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[dict[str, list[list[int]]]] = []
        self.num_compute_capabilities = 0
        self.targets: dict[int, int] = {}
        self.progress_monitor: Any = None
        self.flags = {BuilderFlag.TF32}

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> None:
        assert 0 <= index < self.num_compute_capabilities
        self.targets[index] = compute_capability.value


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._log: Any = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
        if config.progress_monitor is not None:
            config.progress_monitor.phase_start("building", None, 1)
        for _ in config.profiles:
            self._log.log(Severity.INFO, f"Total Activation Memory: {MEMORY_BYTES} bytes")
        caches = [layer for layer in network.layers if layer.type == LayerType.KV_CACHE_UPDATE]
        header = {
            "profiles": config.profiles,
            "capturable": BuilderFlag.REQUIRE_USER_ALLOCATION in config.flags,
            "targets": sorted(config.targets.values()),
            "aliases": {layer.get_output(0).name: layer.get_input(0).name for layer in caches},
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + network.model.SerializeToString()


class FakeTensorRt:
    """Implements what fastblt uses of the module ``tensorrt_rtx``; engines run on a `FakeCuda`."""

    __version__ = "1.7.1.116"
    float32, float16 = DataType.float32, DataType.float16
    bfloat16, int64 = DataType.bfloat16, DataType.int64

    def __init__(self, cuda: FakeCuda) -> None:
        for kind in (
            ILogger, LayerType, TensorIOMode, ExecutionContextAllocationStrategy,
            NetworkDefinitionCreationFlag, BuilderFlag, ComputeCapability, DynamicShapesKernelSpecializationStrategy,
            IRuntimeCache, IRuntimeConfig, IStreamReaderV2, IProgressMonitor, IAttentionInputLayer, INetworkDefinition,
            OnnxParser, Builder, ICudaEngine, IExecutionContext, IBuilderConfig, IOptimizationProfile, ParserError,
        ):  # fmt: skip
            setattr(self, kind.__name__, kind)

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                self._log = logger

            def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
                plan = _read(serialized_engine)
                if not plan.startswith(MAGIC):
                    return None
                engine = ICudaEngine(plan, cuda, self._log)
                return engine if cuda.sm in engine.header["targets"] else None

        self.Runtime = Runtime


def _read(source: Any) -> bytes:
    """Return the bytes of a buffer; or those of a reader, in a single read, like TensorRT 10.7 and 10.8."""
    return bytes(source.read(2**40, 0)) if isinstance(source, IStreamReaderV2) else bytes(memoryview(source))
