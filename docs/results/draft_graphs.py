"""Compares two ways to give block rows weights of their own: a graph of their own, or LoRA inside the decoder's graph.

Prints JSON. Graphs have random weights; times are medians of processor time over interleaved calls, one thread:

    python docs/results/draft_graphs.py > docs/results/draft-graphs.json
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from fastblt.export.decoder_graph import build_decoder_graph
from fastblt.export.graph_builder import FLOAT, INT64, BltGraph
from fastblt.export.graph_file import save_graph
from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.presets import preset
from fastblt.runtime.backends.cpu.bound_graph import Binding, BoundGraph
from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.cpu.sessions import LoadedGraph
from fastblt.runtime.bundle.graph_model import describe
from fastblt.runtime.bundle.manifest import GraphSpec

#: Position of the first row: past the window of the smaller model.
POSITION = 300
CALLS = 150


def mixed(name: str) -> BltConfig:
    """Return a preset's geometry with a draft decoder."""
    return dataclasses.replace(preset(name), decoder_input="mixed")


class LoraGraph(BltGraph):
    """Adds ``flag * (x A) B`` to every product of the decoder; rows with flag 1 begin at an embedding."""

    rank = 16
    flag: ir.Value

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """Compute the decoder's product, and that of block rows."""
        plain = super().linear(x, name)
        a, b = (
            self.builder.initializer(self._weights(f"{name}.{kind}", self.dtype, True), f"{name}.{kind}.T")
            for kind in ("lora_a", "lora_b")
        )
        added: ir.Value = self.op.Add(plain, self.op.Mul(self.flag, self.op.MatMul(self.op.MatMul(x, a), b)))
        return added

    def input(self, name: str, dtype: ir.DataType, shape: object, role: str) -> ir.Value:
        """Add an input; byte states are replaced by embeddings where the flag is 1."""
        found = super().input(name, dtype, shape, role)  # type: ignore[arg-type]
        if name != "states":
            return found
        ids = super().input("ids", INT64, [1, "rows"], "ids")
        self.flag = super().input("flag", FLOAT, [1, "rows", 1], "flag")
        embedded = self.embedding(ids, "draft.tok_embeddings")
        chosen: ir.Value = self.op.Where(self.op.Greater(self.flag, self.op.Constant(value_float=0.5)), embedded, found)
        return chosen


def weights_of(config: BltConfig) -> Callable[[str, ir.DataType, bool], ir.TensorProtocol]:
    """Return random weights of the right shapes."""
    shapes = expected_shapes(config)
    rng = np.random.default_rng(0)

    def weight(name: str, dtype: ir.DataType, transpose: bool) -> ir.TensorProtocol:
        if name.endswith((".lora_a", ".lora_b")):
            out, width = shapes[f"{name.rpartition('.')[0]}.weight"]
            shape: tuple[int, ...] = (LoraGraph.rank, width) if name.endswith("a") else (out, LoraGraph.rank)
        else:
            shape = shapes[name]
        values = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        return ir.tensor(values.T.copy() if transpose else values, name=name)

    return weight


class Candidate:
    """Holds one graph, bound to memory of its own."""

    def __init__(self, config: BltConfig, part: str, kind: type[BltGraph], folder: Path) -> None:
        graph = build_decoder_graph(config, weights_of(config), FLOAT, kind, part)
        model = ir.Model(graph.graph, ir_version=graph.ir_version)
        path = folder / f"{part}-{kind.__name__}.onnx"
        self.weight_bytes = save_graph(model, path)
        self.file_bytes = sum(each.stat().st_size for each in folder.glob(f"{path.name}*"))
        inputs, outputs = (
            tuple(describe(value, graph.roles[value.name or ""]) for value in values)
            for values in (graph.graph.inputs, graph.graph.outputs)
        )
        spec = GraphSpec(path.name, inputs, outputs, self.weight_bytes)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.graph = BoundGraph(LoadedGraph.load(path, spec, config.decoder, options), 512)
        self.config, self.spec = config, spec
        self.buffers: dict[str, Buffer] = {}

    def prepare(self, rows: int, block: int) -> Binding:
        """Return the binding of a call with its tensors bound."""
        binding = self.graph.prepare(POSITION, rows, (1,), block)
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            if tensor.role in ("cache", "cache_update") or tensor.name in (
                "positions",
                "write_index",
                "visible_start",
                "visible_end",
            ):
                continue
            shape = tuple({"rows": rows, "latents": 1}[s] if isinstance(s, str) else s for s in tensor.shape)
            kind = np.dtype(tensor.dtype)
            buffer = self.buffers.setdefault(f"{tensor.name}-{rows}", Buffer(1, shape, kind))
            if tensor.name == "ids":
                buffer.array[:] = 100
            elif tensor.name == "flag":
                buffer.array[:] = float(block > 0)
            elif tensor.name in ("states", "latent_kv"):
                buffer.array[:] = np.random.default_rng(1).standard_normal(buffer.array.shape)
            binding.point(tensor.name, shape, buffer)
        return binding

    def call(self, rows: int, block: int) -> float:
        """Return the processor seconds of a call, after its binding has been prepared once."""
        binding = self.graph.prepare(POSITION, rows, (1,), block)
        began = time.process_time()
        self.graph.run(binding)
        return time.process_time() - began


def measure(name: str, folder: Path) -> dict[str, object]:
    """Return sizes and medians of one geometry."""
    config = mixed(name)
    size = config.block_size
    own = {part: Candidate(config, part, BltGraph, folder) for part in ("decoder", "draft")}
    inside = Candidate(config, "decoder", LoraGraph, folder)
    calls = {
        "a byte, decoder graph": partial(own["decoder"].call, 1, 0),
        "a byte, LoRA inside": partial(inside.call, 1, 0),
        f"anchor and block of {size}, draft graph": partial(own["draft"].call, 1 + size, size),
        f"anchor and block of {size}, LoRA inside": partial(inside.call, 1 + size, size),
        f"verification of {size}, decoder graph": partial(own["decoder"].call, 1 + size, 0),
        f"verification of {size}, LoRA inside": partial(inside.call, 1 + size, 0),
    }
    for rows, block in ((1, 0), (1 + size, size), (1 + size, 0)):
        for candidate in (*own.values(), inside):
            candidate.prepare(rows, block)
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(CALLS):
        for key, call in calls.items():
            seconds[key].append(call())
    return {
        "geometry": name,
        "dim": config.decoder.dim,
        "layers": config.decoder.layers,
        "rank": LoraGraph.rank,
        "file_mb": {
            "decoder and draft": sum(each.file_bytes for each in own.values()) / 1e6,
            "decoder with LoRA inside": inside.file_bytes / 1e6,
        },
        "microseconds": {key: 1e6 * statistics.median(values) for key, values in seconds.items()},
    }


def main() -> None:
    """Measure both geometries."""
    with TemporaryDirectory() as folder:
        found = [measure(name, Path(folder)) for name in ("blt-d-8m", "mid")]
    json.dump({"threads": 1, "geometries": found}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
