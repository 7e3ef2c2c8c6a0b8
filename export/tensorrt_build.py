"""Compiling one graph with TensorRT-RTX (package ``tensorrt-rtx-cu13``); needs neither a GPU nor a driver.

The caches' symbolic sizes (``slots``, ``pool_slots``) become numbers, the others (``rows``, ``patches``, ...) ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import tensorrt_rtx as trt


class TensorRtError(ValueError):
    """A graph that TensorRT-RTX does not take; the message is the compiler's."""


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps errors for the exception, instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)


class TensorRtGraph:
    """A parsed graph.

    Args:
        path: the graph; its external weights lie beside it.
        capacity: slots of its caches, by symbolic size.

    Raises:
        TensorRtError: an operator is not supported.
    """

    def __init__(self, path: Path, capacity: Mapping[str, int]) -> None:
        self.path = path
        self._log = _Log()
        self._builder = trt.Builder(self._log)
        self.network = self._builder.create_network(0)
        model = ir.load(path)
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = ir.Shape([capacity.get(str(size), size) for size in value.shape or ()])
        self._symbols = {value.name: list(value.shape or ()) for value in model.graph.inputs}
        self._parser = trt.OnnxParser(self.network, self._log)
        if not self._parser.parse(ir.to_proto(model).SerializeToString(), str(path)):
            raise TensorRtError(f"{path}: TensorRT-RTX cannot parse it: {'; '.join(self._log.errors)}")
        for layer in (self.network.get_layer(i) for i in range(self.network.num_layers)):
            # There are fused kernels for fp16 and bf16 only; fp32 attention is made of matrix products.
            if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
                layer.__class__ = trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def build(self, ranges: Mapping[str, tuple[int, int, int]], targets: Sequence[str]) -> bytes:
        """An engine.

        Args:
            ranges: smallest, usual and largest value of each symbolic size that the graph has.
            targets: architectures, e.g. ``SM89``.

        Raises:
            TensorRtError: the graph cannot be compiled for them.
        """
        config, profile = self._builder.create_builder_config(), self._builder.create_optimization_profile()
        for name, sizes in self._symbols.items():
            if not all(isinstance(size, int) for size in sizes):
                bounds = [(size,) * 3 if isinstance(size, int) else ranges[str(size)] for size in sizes]
                profile.set_shape(name, *zip(*bounds, strict=True))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
        engine = self._builder.build_serialized_network(self.network, config)
        if engine is None:
            raise TensorRtError(f"{self.path}: TensorRT-RTX cannot build it: {'; '.join(self._log.errors)}")
        return bytes(engine)
