"""A graph as a session of ONNX Runtime on CUDA: its work goes to our stream, and is recorded as CUDA graphs.

ONNX Runtime records a run under a number that the caller gives: one for each shape class here, whose memory never
moves. Where a session cannot be recorded, it runs without.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.executor import Bound
from fastblt.runtime.backends.providers import PROVIDERS, check_session
from fastblt.runtime.bundle.dtypes import TENSOR_TYPES
from fastblt.runtime.bundle.manifest import BundleError, GraphSpec

logger = logging.getLogger(__name__)

#: Fewest slots of a cache that grows with the text; more are bound in powers of two.
_LEAST_SLOTS = 256
#: Number that means: do not record this run.
_NO_GRAPH = "-1"


class OnnxRuntimeExecutor:
    """One session.

    Args:
        ort: the module ``onnxruntime``.
        path: the graph.
        spec: what the manifest says of it.
        stream: carries the work.
        slots: of its caches.
        pool_slots: of its pool.
        providers: execution providers with their options, best first, without what concerns streams and recording.
        options: session options.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
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
        providers: list[tuple[str, dict[str, str]]],
        options: Any,
    ) -> None:
        self.spec, self.slots, self.pool_slots, self.path = spec, slots, pool_slots, path
        self._ort, self._stream, self._providers, self._options = ort, stream, providers, options
        self._numbers = itertools.count(1)
        self.version = 0
        """Raised when the session is made anew: what was bound to the old one has to be bound again."""
        self.records = True
        """Whether runs are recorded as CUDA graphs."""
        try:
            self.session = self._open()
        except BundleError:
            self._stop_recording("the session cannot be made")

    def _open(self) -> Any:
        shared = {"device_id": "0", "user_compute_stream": str(self._stream.handle)}
        cuda = {"enable_cuda_graph": "1" if self.records else "0"}
        providers = [
            (name, options | shared | (cuda if name == PROVIDERS["cuda"] else {})) for name, options in self._providers
        ]
        try:
            session = self._ort.InferenceSession(str(self.path), self._options, providers=providers)
        except Exception as error:
            raise BundleError(f"{self.path}: ONNX Runtime cannot load it ({error})") from error
        check_session(session, self._providers[0][0], str(self.path))
        return session

    def _stop_recording(self, reason: object) -> None:
        logger.warning("%s: not recorded as CUDA graphs: %s", self.path.name, reason)
        self.records = False
        self.session = self._open()
        self.version += 1

    def visible_slots(self, live: int) -> int:
        """See `Executor.visible_slots`: attention costs what is bound, so no more than a power of two is."""
        return min(self.slots, max(_LEAST_SLOTS, 1 << (live - 1).bit_length()))

    def bind(self, tensors: Mapping[str, Bound]) -> OnnxRuntimeLaunch:
        """See `Executor.bind`."""
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            if tensor.name not in tensors:
                raise BundleError(f"{self.path}: tensor {tensor.name}: nothing is bound to it")
        return OnnxRuntimeLaunch(self, dict(tensors), next(self._numbers))

    def binding(self, tensors: Mapping[str, Bound]) -> Any:
        """An IO binding of the current session."""
        io = self.session.io_binding()
        for bind, specs in ((io.bind_input, self.spec.inputs), (io.bind_output, self.spec.outputs)):
            for tensor in specs:
                shape, address = tensors[tensor.name]
                bind(tensor.name, "cuda", 0, TENSOR_TYPES[tensor.dtype].onnx, shape, address)
        return io

    def run(self, binding: Any, number: int) -> None:
        """Queue a run.

        Raises:
            BundleError: ONNX Runtime fails, recorded or not.
        """
        options = self._ort.RunOptions()
        # Without these it would wait for the device before and after each run.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(number) if self.records else _NO_GRAPH)
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:
            if not self.records:
                raise BundleError(f"{self.path}: cannot be run ({error})") from error
            self._stop_recording(error)


class OnnxRuntimeLaunch:
    """A shape class of a session."""

    def __init__(self, executor: OnnxRuntimeExecutor, tensors: dict[str, Bound], number: int) -> None:
        self._executor, self._tensors, self._number = executor, tensors, number
        self._version = -1
        self._binding: Any = None

    def run(self) -> None:
        """See `Launch.run`."""
        executor = self._executor
        self._run_once()
        if self._version != executor.version:
            # Recording failed: the run is done again by the session that does not record.
            self._run_once()

    def _run_once(self) -> None:
        executor = self._executor
        if self._version != executor.version:
            self._binding, self._version = executor.binding(self._tensors), executor.version
        executor.run(self._binding, self._number)
