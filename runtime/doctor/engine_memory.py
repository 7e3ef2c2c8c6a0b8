"""Computes what a box needs to run a folder of engines: weights, engines, activations, caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.gpu.memory import call_buffers, device_buffers, fixed_slots
from fastblt.runtime.bundle.engines import EngineFolder, EngineSpec, compiled_spec
from fastblt.runtime.bundle.manifest import Manifest


@dataclass(frozen=True)
class EngineMemory:
    """Holds the bytes of device memory that the engines of a folder need for texts of one length."""

    folder: str
    max_bytes: int
    """Longest prompt plus new bytes."""
    weights: int
    """Of the graphs; the engines hold them."""
    engines: int
    """Size of the engines: weights and kernels."""
    activations: int | None
    """Memory that the engines share for their activations; None: engines of earlier versions do not record it."""
    buffers: int
    """Of one sequence: caches, what passes from graph to graph, and what a graph reads and writes in one call."""

    @property
    def total(self) -> int:
        """Return the sum for one sequence, without activations where they are unknown."""
        return self.engines + (self.activations or 0) + self.buffers


def engine_memory(folder: EngineFolder, config: BltConfig, manifest: Manifest) -> list[EngineMemory]:
    """Return what each capacity of a folder of engines needs, smallest first."""
    found = []
    for max_bytes in sorted(folder.capacities):
        engines = folder.engines_for(max_bytes) or {}
        parts = list(engines.values())
        # An engine's part may be one that the bundle does not have: whoever loads the engines refuses that.
        weights = sum(spec.weight_bytes for part, spec in manifest.graphs.items() if part in engines)
        buffers = device_buffers(config, manifest.dtype, max_bytes, fixed=fixed_slots(parts))
        graphs = {
            part: compiled_spec(spec, appends=engines[part].appends)
            for part, spec in manifest.graphs.items()
            if part in engines
        }
        called = call_buffers(config, graphs)
        size = sum(engine.bytes for engine in parts)
        found.append(
            EngineMemory(
                folder.path.name,
                max_bytes,
                weights,
                size,
                _activations(parts),
                sum(buffers.values()) + sum(called.values()),
            )
        )
    return found


def _activations(engines: Sequence[EngineSpec]) -> int | None:
    """Return the memory that engines share, because one runs at a time; None: one of them does not record it."""
    known = [engine.activation_bytes for engine in engines if engine.activation_bytes is not None]
    return max(known, default=None) if len(known) == len(engines) else None
