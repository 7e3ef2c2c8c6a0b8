"""Compares every exported graph with the eager module it came from, on the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.export.emulation import wide_spec
from fastblt.export.graph_checks import CHECKS, EagerParts, calls_of
from fastblt.export.graph_runner import Call, GraphRunner
from fastblt.export.weights import CheckpointWeights
from fastblt.export.widening import widen
from fastblt.models.atomic_folder import scratch_folder
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE, GraphSpec
from fastblt.runtime.progress import OnProgress, no_progress

#: Largest accepted difference, relative to the largest magnitude of the reference (at least 1). bf16 graphs are
#: checked with their rounded weights but in fp32 arithmetic, see `fastblt.export.widening`.
TOLERANCE = {"fp32": 2e-4, "fp16": 3e-2, "bf16": 2e-4}


class VerificationError(ValueError):
    """Reports a graph that does not compute what the eager model computes."""


def count_checks(config: BltConfig) -> int:
    """Return how many times `verify_bundle` compares the rows of a sequence in a call, for a model."""
    return sum(len(calls) for part, stack in config.graph_stacks.items() for calls in calls_of(part, stack))


def verify_bundle(
    bundle: Path, weights: CheckpointWeights, dtype: str, on_progress: OnProgress = no_progress
) -> list[dict[str, Any]]:
    """Compare the graphs of a bundle with the checkpoint's eager model.

    Args:
        bundle: folder with the graphs and a manifest.
        weights: of the checkpoint that they came from.
        dtype: of the bundle; the eager model computes in fp32 with weights rounded to it.
        on_progress: a step is a sequence of a call of a graph; its name is the graph's file.

    Returns:
        One entry per graph, call, sequence and output: ``graph``, ``output``, ``rows``, ``position``, ``sequence``,
        ``max_error``.

    Raises:
        VerificationError: a difference is beyond `TOLERANCE`; the message names graph, output and rows.
    """
    opened = Bundle.open(bundle, check=False)
    lowered = opened.manifest.operators == "lowered"
    results: list[dict[str, Any]] = []
    done, total = 0, count_checks(weights.config)
    for part, spec in opened.manifest.graphs.items():
        on_progress(done, total, spec.file)
        runner = _runner(opened.graph(part), spec)
        limit = TOLERANCE["fp32" if part == "patcher" else dtype]
        # One object per part: it keeps the weights that it has loaded.
        for call, outputs in CHECKS[part](EagerParts(weights, dtype, opened.embeddings, lowered=lowered), runner):
            for name, (found, expected) in outputs.items():
                file = EMBEDDINGS_FILE if name == "embedded" else spec.file
                results.append(_compare(file, name, call, found, expected, limit))
            done += 1
            on_progress(done, total, spec.file)
    return results


def _compare(
    file: str, output: str, call: Call, found: NDArray[Any], expected: NDArray[Any], limit: float
) -> dict[str, Any]:
    """Return the entry of one output; raise if it differs too much."""
    error = max_error(found, expected)
    if not error <= limit:
        of = f" of sequence {call.sequence}" if call.sequence else ""
        raise VerificationError(
            f"{file}: output {output}, {call.rows} rows at position {call.position}{of}: "
            f"found a relative error of {error:.3g}, expected at most {limit:g}"
        )
    place = {"rows": call.rows, "position": call.position, "sequence": call.sequence}
    return {"graph": file, "output": output, **place, "max_error": error}


def max_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference, divided by the largest expected magnitude if that exceeds 1."""
    wide, reference = found.astype(np.float64), expected.astype(np.float64)
    if wide.shape != reference.shape:
        return float("inf")
    return float(np.abs(wide - reference).max() / max(1.0, np.abs(reference).max()))


def _runner(path: Path, spec: GraphSpec) -> GraphRunner:
    tensors = (*spec.inputs, *spec.outputs)
    if all(t.dtype != "bfloat16" for t in tensors):
        return GraphRunner(path, spec)

    with scratch_folder(path) as folder:
        twin = folder / path.name
        widen(path, twin)
        return GraphRunner(twin, wide_spec(spec))
