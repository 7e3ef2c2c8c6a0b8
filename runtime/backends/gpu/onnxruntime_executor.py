"""Runs a graph as a session of ONNX Runtime on CUDA: its work goes to our stream and is recorded as CUDA graphs.

ONNX Runtime records the work of a call under a number that the caller chooses. Here each shape class, whose memory
never moves, has a number of its own. A session that cannot be recorded runs without CUDA graphs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.executor import Bound, one_sequence_problem, takes_batches
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, visible_slots
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.providers import PROVIDERS, check_session, check_session_tensors
from fastblt.runtime.bundle.dtypes import TENSOR_TYPES
from fastblt.runtime.bundle.manifest import BundleError, GraphSpec

logger = logging.getLogger(__name__)

#: Number that tells ONNX Runtime not to record a call.
_NO_GRAPH = "-1"


class OnnxRuntimeExecutor:
    """Holds one session.

    Args:
        ort: the module ``onnxruntime``, or a stand-in.
        path: the graph's file.
        spec: the graph's entry in the manifest.
        stream: carries the work.
        slots: of each cache.
        pool_slots: of the pool; 0 where the graph has none.
        usual_pool_slots: of the pool that are bound unless a patch needs more.
        providers: execution providers with their options, best first; options for streams and recording are added.
        options: session options.

    Raises:
        BundleError: ONNX Runtime cannot load the graph, or it is not the one that the manifest describes.
        ProviderError: it fell back to another provider.
    """

    def __init__(
        self,
        ort: Any,
        path: Path,
        spec: GraphSpec,
        stream: Stream,
        slots: int,
        pool_slots: int,
        usual_pool_slots: int,
        providers: list[tuple[str, dict[str, str]]],
        options: Any,
    ) -> None:
        self.spec, self.slots, self.path = spec, slots, path
        self.pool_slots, self.usual_pool_slots = pool_slots, usual_pool_slots
        self.batch_rows = CALL_ROWS
        self._ort, self._stream, self._providers, self._options = ort, stream, providers, options
        self._numbers = itertools.count(1)
        self.version = 0
        """Number of times that the session was replaced; what was bound to an older one has to be bound again."""
        self.records = True
        """Whether calls are recorded as CUDA graphs."""
        try:
            self.session = self._open()
        except BundleError:
            self._stop_recording("the session cannot be made")
        # Once, and not where a session is made: one that does not record would be no better.
        check_session_tensors(path, self.session, spec)

    def _open(self) -> Any:
        """Make a session that records or not, as `records` is."""
        shared = {"device_id": "0", "user_compute_stream": str(self._stream.handle)}
        cuda = {"enable_cuda_graph": "1" if self.records else "0"}
        providers = [
            (name, options | shared | (cuda if name == PROVIDERS["cuda"] else {})) for name, options in self._providers
        ]
        try:
            session = self._ort.InferenceSession(str(self.path), self._options, providers=providers)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"{self.path}: ONNX Runtime cannot load it ({reason})") from error
        check_session(session, self._providers[0][0], str(self.path))
        return session

    def _stop_recording(self, reason: object) -> None:
        """Replace the session with one that does not record."""
        logger.warning("%s: not recorded as CUDA graphs: %s", self.path.name, reason)
        self.records = False
        self.session = self._open()
        self.version += 1

    def visible_slots(self, live: int) -> int:
        """Implement `Executor.visible_slots`: attention reads every slot that is bound, so a power of two is enough."""
        return visible_slots(live, self.slots)

    def accepts(self, size: str, number: int) -> bool:
        """Implement `Executor.accepts`: a session has no limits."""
        return True

    def batch_problem(self, together: int) -> str | None:
        """Implement `Executor.batch_problem`: any number is accepted where there is an axis for it."""
        return None if takes_batches(self.spec) else one_sequence_problem(self.path)

    def bind(self, tensors: Mapping[str, Bound]) -> OnnxRuntimeLaunch:
        """Implement `Executor.bind`; shapes are checked by ONNX Runtime when the graph runs."""
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            if tensor.name not in tensors:
                raise BundleError(f"{self.path}: tensor {tensor.name}: nothing is bound to it")
        return OnnxRuntimeLaunch(self, dict(tensors), next(self._numbers))

    def binding(self, tensors: Mapping[str, Bound]) -> Any:
        """Return an IO binding of the current session with every tensor bound."""
        io = self.session.io_binding()
        for bind, specs in ((io.bind_input, self.spec.inputs), (io.bind_output, self.spec.outputs)):
            for tensor in specs:
                shape, address = tensors[tensor.name]
                bind(tensor.name, "cuda", 0, TENSOR_TYPES[tensor.dtype].onnx, shape, address)
        return io

    def run(self, binding: Any, number: int) -> None:
        """Queue the graph. Where it cannot be recorded, replace the session; the caller then has to call again.

        Args:
            binding: from `binding`.
            number: under which the work is recorded.

        Raises:
            GraphError: ONNX Runtime fails without recording too.
        """
        options = self._ort.RunOptions()
        # Otherwise ONNX Runtime waits for the device before and after each call.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(number) if self.records else _NO_GRAPH)
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:
            self._stream.stop_capturing()
            if not self.records:
                raise graph_error(self.path, error) from error
            self._stop_recording(error)


class OnnxRuntimeLaunch:
    """Runs one shape class of a session."""

    def __init__(self, executor: OnnxRuntimeExecutor, tensors: dict[str, Bound], number: int) -> None:
        self._executor, self._tensors, self._number = executor, tensors, number
        self._version = -1
        self._binding: Any = None

    def run(self) -> None:
        """Implement `Launch.run`."""
        executor = self._executor
        self._run_once()
        if self._version != executor.version:
            # Recording failed: the session that does not record queues the work again.
            self._run_once()

    def recordable(self) -> bool:
        """Implement `Launch.recordable`: a session launches CUDA graphs of its own, which cannot be part of another."""
        return False

    def record(self) -> None:
        """Implement `Launch.record`."""
        raise NotImplementedError

    def _run_once(self) -> None:
        executor = self._executor
        if self._version != executor.version:
            self._binding, self._version = executor.binding(self._tensors), executor.version
        executor.run(self._binding, self._number)
