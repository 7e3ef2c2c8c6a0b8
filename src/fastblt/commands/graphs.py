"""Tables about the graphs of a bundle, for ``export`` and ``inspect``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from fastblt.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec


def graph_table(bundle: Path, manifest: Manifest) -> Table:
    """Files, megabytes on disk, nodes (where the onnx package is installed), largest error against eager."""
    table = Table("file", box=None, pad_edge=False)
    for heading in ("MB", "nodes", "max error against eager"):
        table.add_column(heading, justify="right")
    left = dict.fromkeys(manifest.files)
    total = 0
    for part, graph in manifest.graphs.items():
        size = sum((bundle / name).stat().st_size for name in files_of(graph, manifest))
        for name in files_of(graph, manifest):
            left.pop(name, None)
        total += size
        nodes = count_nodes(bundle / graph.file)
        table.add_row(graph.file, _mb(size), "-" if nodes is None else str(nodes), largest_error(manifest, part))
    for name in left:
        size = (bundle / name).stat().st_size
        total += size
        table.add_row(name, _mb(size), "", "")
    table.add_row("total", _mb(total), "", "", style="bold")
    return table


def files_of(graph: GraphSpec, manifest: Manifest) -> list[str]:
    """A graph's file, and the file of its weights if they lie beside it."""
    return [name for name in (graph.file, f"{graph.file}.data") if name in manifest.files]


def largest_error(manifest: Manifest, part: str) -> str:
    """Largest difference between a part's graph and the eager model, and the output that shows it."""
    names = (part, manifest.graphs[part].file)
    entries = [entry for entry in manifest.verification if entry["graph"] in names]
    if not entries:
        return "not verified"
    worst = max(entries, key=lambda entry: float(entry["max_error"]))
    return f"{worst['max_error']:.2g} ({worst['output']})"


def count_nodes(path: Path) -> int | None:
    """Nodes of a graph; None where the onnx package is not installed."""
    if find_spec("onnx") is None:
        return None
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def tensor_table(graph: GraphSpec) -> Table:
    """Inputs and outputs of one graph."""
    table = Table("", "tensor", "dtype", "shape", "role", box=None, pad_edge=False, title=graph.file)
    table.title_justify = "left"
    for direction, specs in (("in", graph.inputs), ("out", graph.outputs)):
        for spec in specs:
            table.add_row(direction, spec.name, spec.dtype, _shape(spec), spec.role)
    return table


def _shape(spec: TensorSpec) -> str:
    return f"({', '.join(map(str, spec.shape))})"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
