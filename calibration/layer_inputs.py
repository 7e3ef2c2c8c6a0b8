"""Measures the inputs of a graph's linear layers over recorded calls: ranges, channel maxima, second moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from fastblt.calibration.linear_layers import LinearLayer, linear_layers
from fastblt.calibration.precision import CalibrationError
from fastblt.calibration.trace_store import TraceStore
from fastblt.models.atomic_folder import scratch_folder
from fastblt.runtime.bundle.graph_model import load_graph
from fastblt.runtime.machine import default_threads

Floats = NDArray[np.float32]
#: Second moments that are held at a time.
MOMENT_BYTES = 2**30
#: Bins of a layer's histogram.
BINS = 2048
#: Fewer rows are not representative of a layer.
LEAST_ROWS = 32


@dataclass
class LayerInputs:
    """Holds statistics of one layer's inputs."""

    rows: int = 0
    channel_largest: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """[in]: largest magnitude of each channel."""
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    """Counts of magnitudes, `BINS` bins from 0 to `largest`."""
    moments: Floats | None = None
    """[in, in]: mean of x x^T."""

    @property
    def largest(self) -> float:
        """Return the largest magnitude."""
        return float(self.channel_largest.max())


class CallReplay:
    """Replays the recorded calls of a graph, and returns the inputs of chosen layers.

    Args:
        path: graph that a CPU can run.
        part: part of the model that it belongs to.
        store: its traces.
    """

    def __init__(self, path: Path, part: str, store: TraceStore) -> None:
        self.path, self.part, self.store = path, part, store

    def statistics(self, names: Sequence[str], *, moments: bool) -> Iterator[tuple[str, LayerInputs]]:
        """Yield name and statistics of layers, one after the other.

        Args:
            names: of the layers.
            moments: compute second moments, too.

        Raises:
            CalibrationError: a layer's inputs are not finite, or too few.
        """
        sizes = {layer.name: layer.shape[0] for layer in linear_layers(load_graph(self.path).graph)}
        batch: list[str] = []
        for name in names:
            if batch and moments and 4 * sum(sizes[n] ** 2 for n in (*batch, name)) > MOMENT_BYTES:
                yield from self._measure(batch, moments)
                batch = []
            batch.append(name)
        if batch:
            yield from self._measure(batch, moments)

    def _measure(self, names: list[str], moments: bool) -> Iterator[tuple[str, LayerInputs]]:
        found = {name: LayerInputs() for name in names}
        for name, rows in self.rows(names):
            _add_largest(self.path, name, found[name], rows)
        for name, inputs in found.items():
            if inputs.rows < LEAST_ROWS:
                raise CalibrationError(
                    f"{self.path.name}: layer {name}: found {inputs.rows} recorded rows, "
                    f"expected at least {LEAST_ROWS} (more --samples or --data)"
                )
        for name, rows in self.rows(names):
            _add_shape(found[name], rows, moments)
        for inputs in found.values():
            if inputs.moments is not None:
                inputs.moments /= inputs.rows
        yield from found.items()

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, Floats]]:
        """Yield the name of a layer and its inputs, float32 [n, in], call after call."""
        with scratch_folder() as folder:
            values = _expose(self.path, names, folder / "exposed.onnx")
            session = ort.InferenceSession(
                folder / "exposed.onnx", _options(self.path), providers=["CPUExecutionProvider"]
            )
            outputs = sorted(set(values.values()))
            for _, arrays in self.store.read(self.part):
                given = dict(zip(outputs, session.run(outputs, arrays), strict=True))
                for name, value in values.items():
                    yield name, given[value].reshape(-1, given[value].shape[-1]).astype(np.float32)


def _add_largest(path: Path, name: str, inputs: LayerInputs, rows: Floats) -> None:
    largest = np.abs(rows).max(axis=0)
    if not np.isfinite(largest).all():
        found = largest[~np.isfinite(largest)][0]
        raise CalibrationError(f"{path.name}: layer {name}: found {found} in its inputs, expected finite numbers")
    inputs.channel_largest = np.maximum(inputs.channel_largest, largest) if inputs.rows else largest
    inputs.rows += len(rows)


def _add_shape(inputs: LayerInputs, rows: Floats, moments: bool) -> None:
    inputs.histogram += np.histogram(np.abs(rows), bins=BINS, range=(0.0, inputs.largest or 1.0))[0]
    if moments:
        product = rows.T @ rows
        inputs.moments = product if inputs.moments is None else inputs.moments + product


def _options(path: Path) -> ort.SessionOptions:
    """Return quiet options with one thread for small graphs: more would only wait for one another."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = default_threads(_size(path))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _size(path: Path) -> int:
    """Return the bytes of a graph and of the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _expose(path: Path, names: Sequence[str], target: Path) -> dict[str, str]:
    """Write a graph whose outputs are the inputs of layers; return the name of each layer's value."""
    model = load_graph(path)
    layers: dict[str, LinearLayer] = {layer.name: layer for layer in linear_layers(model.graph)}
    model.graph.outputs.clear()
    values: dict[str, str] = {}
    for name in names:
        value = layers[name].input
        assert value.name is not None
        if value.name not in values.values():
            if value.type is None:
                weight = layers[name].weight.const_value
                assert weight is not None
                value.type = ir.TensorType(weight.dtype)
            model.graph.outputs.append(value)
        values[name] = value.name
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=1024)
    return values
