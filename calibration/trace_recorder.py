"""Records what the graphs of a bundle are fed while it really generates, with every way of decoding.

A decoder whose ranges come from clean text only clips on rows of [MASK]; a global transformer needs latents of real
patches. So prompts are continued with each method, and the calls of each graph are sampled by kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastblt.calibration.precision import CalibrationError
from fastblt.calibration.trace_store import Arrays, TraceStore
from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.bound_graph import Binding
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.methods.registry import trace_methods

#: Kinds of calls. A block that is denoised is told apart by how much of it is hidden, in quarters.
STRATA = ("prefill", "byte", "chunk")
MASKED_STRATA = ("masked-25", "masked-50", "masked-75", "masked-100")
#: Fewer samples a graph say nothing.
LEAST_SAMPLES = 16


@dataclass(frozen=True)
class RecordingSetting:
    """What to record."""

    prompts: tuple[bytes, ...]
    samples: int = 256
    """Calls that are kept of each graph."""
    new_bytes: int = 64
    """Bytes generated after each prompt with each method."""
    seed: int = 0

    def methods(self, config: BltConfig) -> tuple[str, ...]:
        """Return the names of the methods that activations are recorded with."""
        return trace_methods(config)

    def facts(self, config: BltConfig) -> dict[str, object]:
        """What determines the samples, as plain JSON."""
        digest = hashlib.sha256(b"\0".join(self.prompts)).hexdigest()
        return {
            "methods": list(self.methods(config)),
            "prompts": len(self.prompts),
            "prompts_sha256": digest,
            "samples": self.samples,
            "new_bytes": self.new_bytes,
            "seed": self.seed,
        }


def record(
    bundle: Path,
    folder: Path,
    model: str,
    setting: RecordingSetting,
    on_unit: Callable[[int, int], None] = lambda done, total: None,
) -> TraceStore:
    """Record traces of a bundle, or go on where a recording was interrupted.

    Args:
        bundle: that the CPU can run.
        folder: where traces are, or will be.
        model: digest of the model that they are of.
        setting: what to record.
        on_unit: told how many units of work of how many are done.

    Raises:
        CalibrationError: too few samples or prompts are asked for, or the folder has other traces.
    """
    if setting.samples < LEAST_SAMPLES:
        raise CalibrationError(f"--samples: found {setting.samples}, expected at least {LEAST_SAMPLES}")
    if not setting.prompts:
        raise CalibrationError("data: found no prompt, expected at least one")
    longest = max(map(len, setting.prompts))
    runtime = BltRuntime.from_pretrained(bundle, max_bytes=longest + setting.new_bytes)
    store = TraceStore(folder, model, dict(setting.facts(runtime.config)))
    units = [(prompt, method) for prompt in setting.prompts for method in setting.methods(runtime.config)]
    backend = runtime.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    for number in range(store.index.units, len(units)):
        prompt, method = units[number]
        watcher = _Watcher(store, backend, setting, number, len(prompt))
        with watcher:
            runtime.generate(prompt, setting.new_bytes, method=method)
        store.end_unit(last=number + 1 == len(units))
        on_unit(number + 1, len(units))
    return store


class _Watcher:
    """Offers every call of one unit of work to the store."""

    def __init__(
        self, store: TraceStore, backend: OnnxRuntimeBackend, setting: RecordingSetting, unit: int, prompt: int
    ) -> None:
        self._store, self._backend, self._prompt = store, backend, prompt
        self._random = np.random.default_rng([setting.seed, unit])
        self._samples = setting.samples
        self._masked = bool(backend.config.block_size)
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
        strata = len(STRATA) + (len(MASKED_STRATA) if part == "decoder" and self._masked else 0)
        capacity = -(-self._samples // strata)
        self._store.offer(
            part,
            stratum,
            float(self._random.random()),
            capacity,
            positions.shape[1],
            lambda: self._inputs(part, binding),
        )

    def _inputs(self, part: str, binding: Binding) -> Arrays:
        """A call's inputs; what it can see nothing of in its caches is 0, whatever earlier texts left there."""
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
        if part == "decoder" and ids is not None and (ids == MASK_ID).any():
            quarters = int(np.ceil(4 * float((ids == MASK_ID).mean())))
            return MASKED_STRATA[quarters - 1]
        if part != "global":  # whose positions are patches: it belongs to the encoder's call before it
            self._in_prompt = int(positions[0, -1]) <= self._prompt
        if self._in_prompt and positions.shape[1] > 1:
            return "prefill"
        return "byte" if positions.shape[1] == 1 else "chunk"
