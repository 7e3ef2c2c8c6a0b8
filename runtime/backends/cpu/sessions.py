"""Loads graphs into sessions of ONNX Runtime on the CPU, which every sequence of a model shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from fastblt.models.config import StackConfig
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.providers import PROVIDERS, check_session_tensors
from fastblt.runtime.bundle.manifest import BundleError, GraphSpec, Manifest
from fastblt.runtime.machine import default_threads

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.bound_graph import Binding


@dataclass
class LoadedGraph:
    """Holds one graph's session; any number of threads may run it at once."""

    path: Path
    spec: GraphSpec
    stack: StackConfig
    """Geometry of its transformer stack."""
    session: Any
    on_run: Callable[[Binding], None] | None = None
    """Called with the binding of every call, of any sequence, before it runs."""

    @classmethod
    def load(cls, path: Path, spec: GraphSpec, stack: StackConfig, options: Any) -> LoadedGraph:
        """Load a graph.

        Args:
            path: the graph.
            spec: its inputs and outputs.
            stack: geometry of its transformer stack.
            options: session options.

        Raises:
            BundleError: ONNX Runtime cannot load the graph, or it is not the one that the manifest describes.
        """
        try:
            session = ort.InferenceSession(str(path), options, providers=[PROVIDERS["cpu"]])
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"{path}: ONNX Runtime cannot load it ({reason})") from error
        check_session_tensors(path, session, spec)
        return cls(path, spec, stack, session)

    def run(self, binding: Binding) -> None:
        """Run a call whose inputs and outputs are bound.

        Raises:
            GraphError: ONNX Runtime fails.
        """
        if self.on_run is not None:
            self.on_run(binding)
        try:
            self.session.run_with_iobinding(binding.io)
        except Exception as error:
            raise graph_error(self.path, error) from error


def session_options(manifest: Manifest, threads: int | None, *, exact: bool = False) -> Any:
    """Return the options of every session: quiet, one thread for small models, spinning only within a run.

    Args:
        manifest: of the bundle.
        threads: of one operator; None: as many as suit the model.
        exact: compute products with quantized weights in fp32, as the graph defines them. Otherwise ONNX Runtime
            rounds their inputs to 8 bits, which is several times as fast.
    """
    if threads is None:
        threads = default_threads(manifest.weight_bytes)
    _register_arena()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; they are not printed too
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
    if "fp8" in manifest.precisions:
        # CPUs have no product of E4M3 numbers, and the fused operator refuses to load: compute it in fp32, as the
        # graph defines it.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.inter_op_num_threads = 1
    # Threads stay awake for the next operator of a run, which is quicker than waking them for each. Four sessions take
    # turns, so the threads must not keep spinning when the run has ended.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Sessions take turns, so what they compute lies in one arena. Weights stay outside and go with their session.
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


@cache
def _register_arena() -> None:
    """Register the working memory that all sessions of this process share."""
    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(kind, ort.OrtArenaCfg(0, -1, -1, -1))  # grows by powers of two, without a limit
