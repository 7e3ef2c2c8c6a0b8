"""Writes a graph with its weights inside the file, or beside it if they are large."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

#: Weights of graphs larger than this go to a file beside the graph (protobuf is limited to 2 GB).
EXTERNAL_BYTES = 64 * 2**20


def save_graph(model: ir.Model, path: Path) -> int:
    """Write a graph and return the bytes of the weights that a call reads (without embedding tables).

    Raises:
        SerdeError: a weight cannot be read.
    """
    values = model.graph.initializers.items()
    sizes = {name: value.const_value.nbytes for name, value in values if value.const_value is not None}
    external = f"{path.name}.data" if sum(sizes.values()) > EXTERNAL_BYTES else None
    if external is None:
        ir.external_data.load_to_model(model)  # weights in a file beside the graph that they came from
    ir.save(model, path, external_data=external, size_threshold_bytes=1024)
    return sum(size for name, size in sizes.items() if "embeddings" not in name)
