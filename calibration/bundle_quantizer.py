"""Writes a bundle with other precisions of its linear layers; unchanged files are copied or shared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastblt.calibration.activation_ranges import activation_scale
from fastblt.calibration.gptq import gptq
from fastblt.calibration.graph_rewriting import quantize_input, quantize_weight, raise_opset
from fastblt.calibration.layer_inputs import CallReplay, LayerInputs
from fastblt.calibration.linear_layers import LinearLayer, linear_layers
from fastblt.calibration.precision import Precision
from fastblt.calibration.rounding import QuantizedMatrix, round_to_nearest
from fastblt.calibration.trace_store import TraceStore
from fastblt.export.graph_file import save_graph
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.graph_model import check_graph, load_graph
from fastblt.runtime.bundle.manifest import GraphSpec, Manifest, write_manifest

#: Precision of each layer, by part and name; layers that are missing keep theirs.
Assignment = Mapping[str, Mapping[str, Precision]]


@dataclass(frozen=True)
class Recipe:
    """Describes how layers are quantized, but not which."""

    rounding: str = "rtn"
    """One of `fastblt.calibration.precision.ROUNDINGS`."""
    ranges: str = "minmax"
    """How ranges of quantized inputs are chosen, see `fastblt.calibration.activation_ranges`."""


@dataclass
class Quantizer:
    """Makes quantized bundles from one bundle; the inputs of its layers are measured once.

    Args:
        bundle: folder of the bundle to quantize.
        runnable: folder of the same bundle for CPUs: ``bundle`` itself, unless its type has no CPU kernels.
        store: traces; needed for GPTQ and for quantized inputs.
        recipe: rounding and ranges.
    """

    bundle: Path
    runnable: Path
    store: TraceStore | None
    recipe: Recipe
    _inputs: dict[tuple[str, str], LayerInputs] = field(default_factory=dict)

    def write(
        self, folder: Path, assignment: Assignment, facts: Mapping[str, Any] | None = None, *, link: bool = False
    ) -> Manifest:
        """Write a bundle.

        Args:
            folder: empty folder to write to.
            assignment: precision of layers.
            facts: content of the manifest about the quantization, besides the precisions.
            link: share unchanged files instead of copying them, for bundles that are soon deleted.

        Raises:
            CalibrationError: weights or inputs are not finite, or there are too few traces.
        """
        manifest = Bundle.open(self.bundle, check=False).manifest
        changed = {part for part, layers in assignment.items() if layers}
        replaced = {manifest.graphs[part].file for part in changed}
        kept = {name: entry for name, entry in manifest.files.items() if name.removesuffix(".data") not in replaced}
        for name in kept:
            (share if link else shutil.copyfile)(self.bundle / name, folder / name)
        graphs = {
            part: self._quantize(folder, part, spec, assignment[part]) if part in changed else spec
            for part, spec in manifest.graphs.items()
        }
        precisions = {
            part: {name: precision.label for name, precision in assignment[part].items()}
            for part in manifest.graphs
            if part in changed
        }
        quantization = {**(facts or {"scheme": "mixed"}), "graphs": precisions}
        written = write_manifest(folder, replace(manifest, graphs=graphs, files=kept, quantization=quantization))
        for part in changed:
            check_graph(folder / graphs[part].file, load_graph(folder / graphs[part].file), graphs[part])
        return written

    def _quantize(self, folder: Path, part: str, spec: GraphSpec, layers: Mapping[str, Precision]) -> GraphSpec:
        model = load_graph(self.bundle / spec.file)
        graph = model.graph
        self._measure(part, spec, layers)
        for layer in list(linear_layers(graph)):
            precision = layers.get(layer.name)
            if precision is None:
                continue
            matrix = self._matrix(part, layer, precision)
            if precision.activations:
                quantize_input(graph, layer, precision.weights, self._scale(part, layer, precision))
            quantize_weight(graph, layer, matrix)
        raise_opset(model)
        return replace(spec, weight_bytes=save_graph(model, folder / spec.file))

    def _measure(self, part: str, spec: GraphSpec, layers: Mapping[str, Precision]) -> None:
        """Measure the inputs of layers whose quantization depends on them."""
        moments = self.recipe.rounding == "gptq"
        wanted = [
            name
            for name, precision in layers.items()
            if (part, name) not in self._inputs and (precision.activations or _is_compensated(self.recipe, precision))
        ]
        if not wanted:
            return
        assert self.store is not None, "traces are recorded for recipes that need them"
        replay = CallReplay(self.runnable / spec.file, part, self.store)
        for name, inputs in replay.statistics(wanted, moments=moments):
            self._inputs[part, name] = inputs

    def _matrix(self, part: str, layer: LinearLayer, precision: Precision) -> QuantizedMatrix:
        assert layer.weight.const_value is not None
        dtype = layer.weight.const_value.dtype.numpy()
        if _is_compensated(self.recipe, precision):
            moments = self._inputs[part, layer.name].moments
            assert moments is not None
            return gptq(layer.matrix(), moments, precision, dtype, layer.name)
        return round_to_nearest(layer.matrix(), precision, dtype, layer.name)

    def _scale(self, part: str, layer: LinearLayer, precision: Precision) -> float:
        inputs = self._inputs[part, layer.name]
        return activation_scale(inputs, precision.weights, self.recipe.ranges, layer.name)


def _is_compensated(recipe: Recipe, precision: Precision) -> bool:
    """Decide whether GPTQ compensates roundings; those of E4M3 are relative, which its grid does not support."""
    return recipe.rounding == "gptq" and precision.weights != "fp8"


def layers_of(bundle: Path, parts: Sequence[str]) -> Iterator[tuple[str, LinearLayer]]:
    """Yield part and layer for every linear layer in the graphs of these parts."""
    opened = Bundle.open(bundle, check=False)
    for part in parts:
        for layer in linear_layers(load_graph(opened.graph(part)).graph):
            yield part, layer


def share(source: Path, target: Path) -> None:
    """Make a file available at another path: a hard link, or a copy if links are not supported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
