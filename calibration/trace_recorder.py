"""Records what the graphs of a bundle are fed while it generates with every method.

A decoder whose ranges come from clean text only would clip rows of [MASK]; a global transformer needs latents of real
patches. Prompts are therefore continued with each method, and the calls of each graph are sampled by kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastblt.calibration.request import RecordingSetting
from fastblt.calibration.trace_store import Arrays, TraceStore
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.bound_graph import Binding
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.progress import OnProgress, no_progress

#: Kinds of calls. Blocks that are denoised are distinguished by how much of them is hidden, in quarters.
STRATA = ("prefill", "byte", "chunk")
MASKED_STRATA = ("masked-25", "masked-50", "masked-75", "masked-100")


def record(
    bundle: Path,
    folder: Path,
    model: str,
    setting: RecordingSetting,
    on_progress: OnProgress = no_progress,
) -> TraceStore:
    """Record traces of a bundle, or continue an interrupted recording.

    Args:
        bundle: one that the CPU can run.
        folder: where traces are or will be.
        model: digest of the model, see `fastblt.calibration.trace_store.model_digest`.
        setting: what to record.
        on_progress: a step is a prompt continued with a method.

    Raises:
        CalibrationError: the folder contains other traces.
    """
    longest = max(map(len, setting.prompts))
    runtime = BltRuntime.from_pretrained(bundle, max_bytes=longest + setting.new_bytes, reuse_prompts=False)
    store = TraceStore(folder, model, dict(setting.facts(runtime.config)))
    methods = setting.methods(runtime.config)
    units = [(prompt, method) for prompt in setting.prompts for method in methods]
    backend = runtime.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    for number in range(store.index.units, len(units)):
        prompt, method = units[number]
        on_progress(number, len(units), f"prompt {number // len(methods) + 1} with {method}")
        watcher = _Watcher(store, backend, setting, number, len(prompt))
        with watcher:
            runtime.generate(prompt, setting.new_bytes, method=method)
        store.end_unit(last=number + 1 == len(units))
    on_progress(len(units), len(units), "")
    return store


class _Watcher:
    """Offers every call of the graphs to the store while one prompt is continued."""

    def __init__(
        self, store: TraceStore, backend: OnnxRuntimeBackend, setting: RecordingSetting, unit: int, prompt: int
    ) -> None:
        self._store, self._backend, self._prompt = store, backend, prompt
        self._random = np.random.default_rng([setting.seed, unit])
        self._samples = setting.samples
        self._strata = {part: _strata(part, backend) for part in backend.graphs}
        self._in_prompt = True

    def __enter__(self) -> None:
        for part, graph in self._backend.graphs.items():
            graph.on_run = lambda binding, part=part: self._offer(part, binding)

    def __exit__(self, *_: object) -> None:
        for graph in self._backend.graphs.values():
            graph.on_run = None

    def _offer(self, part: str, binding: Binding) -> None:
        small = binding.inputs({"positions", "ids"})
        positions = small["positions"]
        stratum = self._stratum(part, positions, small.get("ids"))
        capacity = -(-self._samples // self._strata[part])
        self._store.offer(
            part,
            stratum,
            float(self._random.random()),
            capacity,
            positions.shape[1],
            lambda: self._inputs(part, binding),
        )

    def _inputs(self, part: str, binding: Binding) -> Arrays:
        """Return a call's inputs, with 0 in the rows of its caches that it cannot see, whatever earlier texts left."""
        arrays = binding.inputs()
        first, last = int(arrays["visible_start"].min()), int(arrays["write_index"][0])
        for tensor in self._backend.graphs[part].spec.inputs:
            if tensor.role == "cache":
                arrays[tensor.name][:, :, :first] = 0
                arrays[tensor.name][:, :, last:] = 0
            elif tensor.role == "pool":
                arrays[tensor.name][:, :, int(arrays["pool_index"][0]) :] = 0
        return arrays

    def _stratum(self, part: str, positions: np.ndarray, ids: np.ndarray | None) -> str:
        if part in ("decoder", "draft") and ids is not None and (ids == MASK_ID).any():
            quarters = int(np.ceil(4 * float((ids == MASK_ID).mean())))
            return MASKED_STRATA[quarters - 1]
        if part != "global":  # its positions are patches: it belongs to the encoder's call before it
            self._in_prompt = int(positions[0, -1]) <= self._prompt
        if self._in_prompt and positions.shape[1] > 1:
            return "prefill"
        return "byte" if positions.shape[1] == 1 else "chunk"


def _strata(part: str, backend: OnnxRuntimeBackend) -> int:
    """Return how many kinds of calls a graph gets."""
    if part == "draft":
        return len(MASKED_STRATA)
    denoises = part == "decoder" and backend.config.block_size and "draft" not in backend.graphs
    return len(STRATA) + (len(MASKED_STRATA) if denoises else 0)
