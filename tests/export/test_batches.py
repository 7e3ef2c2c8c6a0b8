"""Graphs whose sequences are mixed up agree with the eager model only as long as a call holds one sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fastblt.export.graph_checks import CHECKS, EagerParts
from fastblt.export.graph_runner import SEQUENCES, GraphRunner
from fastblt.export.verification import TOLERANCE, max_error
from fastblt.export.weights import CheckpointWeights
from fastblt.models.formats.merged_draft import merged_draft
from fastblt.models.formats.open import open_checkpoint
from fastblt.runtime.bundle.bundle import Bundle

#: Inputs of each part that are those of a sequence, and whether the graphs are lowered.
OWN = [
    *(("patcher", name, False) for name in ("positions", "visible_start", "key_0")),
    *(("encoder", name, False) for name in ("pool_index", "patch_start", "pool")),
    *(("global", name, False) for name in ("positions", "visible_end", "value_0")),
    *(("decoder", name, False) for name in ("latent_index", "write_index", "states")),
    *(("draft", name, False) for name in ("latent_index", "write_index")),
    *(("encoder", "pool_index", True), ("global", "write_index", True), ("decoder", "write_index", True)),
]


def use_first_sequence(source: Path, target: Path, name: str) -> None:
    """Let a graph take the first sequence's part of an input for every sequence."""
    model = onnx.load(source)
    for node in model.graph.node:
        for index, each in enumerate(node.input):
            node.input[index] = f"{name}.first" if each == name else each
    (value,) = (value for value in model.graph.input if value.name == name)
    ones = np.ones(len(value.type.tensor_type.shape.dim) - 1, np.int64)
    constants = {"zero": np.array([0]), "one": np.array([1]), "ones": ones}
    model.graph.initializer.extend(numpy_helper.from_array(array, f"first.{at}") for at, array in constants.items())
    model.graph.node.insert(0, helper.make_node("Expand", [f"{name}.slice", f"{name}.shape"], [f"{name}.first"]))
    sizes = [f"{name}.batch", "first.ones"]
    model.graph.node.insert(0, helper.make_node("Concat", sizes, [f"{name}.shape"], axis=0))
    model.graph.node.insert(0, helper.make_node("Shape", [name], [f"{name}.batch"], start=0, end=1))
    bounds = ["first.zero", "first.one", "first.zero"]
    model.graph.node.insert(0, helper.make_node("Slice", [name, *bounds], [f"{name}.slice"]))
    onnx.save(model, target)


@pytest.mark.parametrize(("part", "name", "lowered"), OWN)
def test_graph_that_takes_the_first_sequences_input_for_all_is_found(
    exported: Callable[..., Path], tiny_mixed_checkpoint: Path, tmp_path: Path, part: str, name: str, lowered: bool
) -> None:
    bundle = Bundle.open(exported(tiny_mixed_checkpoint, lowered=lowered, verify=True), check=False)
    spec = bundle.manifest.graphs[part]
    use_first_sequence(bundle.graph(part), tmp_path / spec.file, name)
    weights = CheckpointWeights(merged_draft(open_checkpoint(tiny_mixed_checkpoint)))
    eager = EagerParts(weights, "fp32", bundle.embeddings, lowered=lowered)
    wrong = set()
    for call, outputs in CHECKS[part](eager, GraphRunner(tmp_path / spec.file, spec)):
        if any(max_error(found, expected) > TOLERANCE["fp32"] for found, expected in outputs.values()):
            wrong.add(call.sequence)
    assert wrong == set(range(1, SEQUENCES))
