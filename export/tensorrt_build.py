"""Compiles one graph with TensorRT or TensorRT-RTX; TensorRT-RTX needs neither a GPU nor a driver for that.

Polygraphy is not used here: it chooses between the two libraries by an environment variable when it is imported, and
prints the compiler's messages instead of returning them.

The symbolic sizes of caches that are updated in place (``slots``, ``pool_slots``) become numbers, the others (``rows``,
``patches``, ...) ranges.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import onnx_ir as ir

from fastblt.export.appending import append_caches
from fastblt.export.flat_products import flatten_products
from fastblt.models.atomic_file import write_file
from fastblt.runtime.bundle.engines import ShapeProfile
from fastblt.runtime.bundle.graph_model import load_graph
from fastblt.runtime.bundle.manifest import GraphSpec
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, TensorRtLibrary


class TensorRtGraph:
    """Holds a parsed graph and compiles it.

    Args:
        library: the compiler.
        path: the graph; its external weights are beside it.
        capacity: slots of its caches, by symbolic size; calls choose what is not in it.
        appends: its entry in the manifest, if the graph is to return the new rows of its caches (`append_caches`).

    Raises:
        TensorRtError: an operator is not supported; the message names graph, node and operator.
    """

    def __init__(
        self, library: TensorRtLibrary, path: Path, capacity: Mapping[str, int], appends: GraphSpec | None = None
    ) -> None:
        self.path = path
        self._library, self._trt = library, library.module
        self._log = library.new_log()
        self._builder = self._trt.Builder(self._log)
        self.network = self._builder.create_network(_network_flags(self._trt))
        self._parser = self._trt.OnnxParser(self.network, self._log)
        if not self._parser.parse(_with_sizes(path, capacity, appends), str(path)):
            raise TensorRtError(f"{path}: {library.label} cannot parse it: {self._parser_errors()}")
        self.decomposed = False
        """Whether attention that has no kernel is made of matrix products."""
        if any(layer.get_input(0).dtype == self._trt.float32 for layer in self._attentions()):
            # There are kernels for fp16 and bf16 only.
            self._decompose_attention()
        # A batch of single rows (a decoder row and the tokens of its latent) is a few products of vectors anyway.
        self._let_decompose([layer for layer in self._attentions() if layer.attention.mask is None])

    def _parser_errors(self) -> str:
        """Return the parser's errors, each with its node and operator."""
        found = []
        for error in (self._parser.get_error(index) for index in range(self._parser.num_errors)):
            operator = error.node_operator() if hasattr(error, "node_operator") else "unknown"
            node = error.node_name() if hasattr(error, "node_name") else error.node()
            found.append(f"node {node or 'without a name'}, operator {operator}: {error.desc()}")
        return "; ".join(found) or self._log.text()

    def _attentions(self) -> list[Any]:
        kind = getattr(self._trt.LayerType, "ATTENTION_INPUT", None)
        layers = (self.network.get_layer(index) for index in range(self.network.num_layers))
        found = [layer for layer in layers if kind is not None and layer.type == kind]
        for layer in found:
            layer.__class__ = self._trt.IAttentionInputLayer
        return found

    def _decompose_attention(self) -> None:
        """Let attention be made of matrix products in profiles without a kernel."""
        self._let_decompose(self._attentions())
        self.decomposed = True

    def _let_decompose(self, layers: Sequence[Any]) -> None:
        for layer in layers:
            layer.attention.decomposable = True

    @property
    def activation_bytes(self) -> int | None:
        """Return the device memory that the activations of the engine just built need; None: not reported."""
        return max(self._log.activations, default=None)

    def aliases(self) -> dict[str, str]:
        """Return the caches that are updated in place, by the name of the update."""
        trt, found = self._trt, {}
        if hasattr(trt.LayerType, "KV_CACHE_UPDATE"):
            for layer in (self.network.get_layer(i) for i in range(self.network.num_layers)):
                if layer.type == trt.LayerType.KV_CACHE_UPDATE:
                    found[layer.get_output(0).name] = layer.get_input(0).name
        return found

    def build(
        self,
        profiles: Sequence[ShapeProfile],
        sms: Sequence[int],
        timing_cache: Path | None = None,
        progress: Callable[[str], None] | None = None,
        cancelled: Event | None = None,
    ) -> memoryview:
        """Build an engine and return its bytes, without a second copy of them.

        Args:
            profiles: shapes that it must accept.
            sms: compute capabilities, e.g. 89. TensorRT ignores them and builds for the GPU of this machine.
            timing_cache: TensorRT's measurements of kernels; read if it exists, and written.
            progress: called with the name of each phase of the compiler; what it raises ends the build.
            cancelled: ends the build when it is set, after the compiler's current step.

        Raises:
            TensorRtError: the graph cannot be compiled for them, or the build was cancelled.
        """
        config = self._builder.create_builder_config()
        if hasattr(self._trt.BuilderFlag, "TF32"):
            # On by default; it would round the fp32 patcher's entropies to ten bits and move the ends of patches.
            config.clear_flag(self._trt.BuilderFlag.TF32)
        if hasattr(self._trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # TensorRT-RTX: without it, an inference allocates memory and cannot be captured as a CUDA graph.
            config.set_flag(self._trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        for profile in profiles:
            config.add_optimization_profile(self._profile(profile))
        self._set_targets(config, sms)
        cache = self._load_timings(config, timing_cache)
        errors: list[BaseException] = []
        cancelled = Event() if cancelled is None else cancelled
        if progress is not None:
            config.progress_monitor = _progress_monitor(self._trt, progress, cancelled, errors)

        def attempt() -> Any:
            with quiet_stderr():
                found = self._builder.build_serialized_network(self.network, config)
            if errors:
                raise errors[0]
            if cancelled.is_set():
                raise TensorRtError(f"{self.path}: cancelled")
            return found

        engine = attempt()
        if engine is None and self._attentions() and not self.decomposed:
            # For example, one row with narrow heads has no kernel; only a failed build shows that.
            self._decompose_attention()
            self._log.errors.clear()
            self._log.activations.clear()
            engine = attempt()
        if engine is None:
            raise TensorRtError(f"{self.path}: {self._library.label} cannot build it: {self._log.text()}")
        if timing_cache is not None and cache is not None:
            write_file(timing_cache, bytes(cache.serialize()))
        return memoryview(engine)

    def _profile(self, profile: ShapeProfile) -> Any:
        found = self._builder.create_optimization_profile()
        for name, bounds in profile.shapes.items():
            found.set_shape(name, *bounds)
        return found

    def _set_targets(self, config: Any, sms: Sequence[int]) -> None:
        if self._library.target != "tensorrt-rtx":
            return
        known = self._trt.ComputeCapability
        config.num_compute_capabilities = len(sms)
        for index, sm in enumerate(sms):
            capability = getattr(known, f"SM{sm}", None)
            if capability is None:
                names = sorted(int(name[2:]) for name in known.__members__ if name.startswith("SM"))
                raise TensorRtError(f"sm: found {sm}, expected one of {', '.join(str(name) for name in names)}")
            config.set_compute_capability(capability, index)

    def _load_timings(self, config: Any, path: Path | None) -> Any:
        if path is None:
            return None
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise TensorRtError(f"{path}: {self._library.label} does not accept this timing cache: {self._log.text()}")
        return cache


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Suppress what libraries write to standard error directly; the log contains it, too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _network_flags(trt: Any) -> int:
    """Return the flag of strongly typed networks, whose types come from the graph; from version 11 on all are."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _with_sizes(path: Path, capacity: Mapping[str, int], appends: GraphSpec | None) -> bytes:
    """Return a serialized graph with numbers for the sizes of its caches; weights in other files stay there."""
    model = load_graph(path)
    flatten_products(model.graph)
    if appends is not None:
        append_caches(model, appends)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([capacity.get(str(size), size) for size in value.shape or ()])
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def _progress_monitor(trt: Any, progress: Callable[[str], None], cancelled: Event, errors: list[BaseException]) -> Any:
    """Return what the compiler calls: it drops exceptions, which are kept in ``errors``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                if not errors:
                    progress(phase_name)
            except BaseException as error:
                errors.append(error)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not errors and not cancelled.is_set()

    return Monitor()
