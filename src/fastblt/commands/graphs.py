"""Tables about the graphs of a bundle, for ``export`` and ``inspect``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from fastblt.commands.output import add_row, left, make_table, megabytes, right
from fastblt.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec


def graph_table(bundle: Path, manifest: Manifest) -> Table:
    """Return a table of a bundle's files: size, nodes (where onnx is installed), largest error against PyTorch."""
    table = make_table(left("file"), right("MB"), right("nodes"), right("error against PyTorch"), left("in output"))
    others = dict.fromkeys(manifest.files)
    total = 0
    for part, graph in manifest.graphs.items():
        size = sum((bundle / name).stat().st_size for name in files_of(graph, manifest))
        for name in files_of(graph, manifest):
            others.pop(name, None)
        total += size
        nodes = count_nodes(bundle / graph.file, graph)
        shown = "-" if nodes is None else str(nodes)
        add_row(table, graph.file, megabytes(size), shown, *largest_error(manifest, part))
    for name in others:
        size = (bundle / name).stat().st_size
        total += size
        add_row(table, name, megabytes(size))
    add_row(table, "total", megabytes(total), bold=True)
    return table


def graph_tables(bundle: Path, manifest: Manifest) -> list[Table]:
    """Return the table of a bundle's files, and one of the inputs and outputs of each graph.

    Raises:
        BundleError: a graph is not the one that the manifest describes.
    """
    return [graph_table(bundle, manifest), *map(tensor_table, manifest.graphs.values())]


def files_of(graph: GraphSpec, manifest: Manifest) -> list[str]:
    """Return a graph's file, and the file of its weights if there is one beside it."""
    return [name for name in (graph.file, f"{graph.file}.data") if name in manifest.files]


def largest_error(manifest: Manifest, part: str) -> tuple[str, str]:
    """Return the largest difference between a part's graph and the PyTorch model, and the output that has it."""
    names = (part, manifest.graphs[part].file)
    entries = [entry for entry in manifest.verification if entry["graph"] in names]
    if not entries:
        return "not compared", ""
    worst = max(entries, key=lambda entry: float(entry["max_error"]))
    return f"{worst['max_error']:.2g}", str(worst["output"])


def count_nodes(path: Path, spec: GraphSpec) -> int | None:
    """Return the number of nodes of a graph, after a comparison with the manifest; None where onnx is not installed.

    Raises:
        BundleError: it is no graph, or not the one that the manifest describes.
    """
    if find_spec("onnx_ir") is None or find_spec("onnx") is None:
        return None
    from fastblt.runtime.bundle.graph_model import check_graph, load_graph

    model = load_graph(path)
    check_graph(path, model, spec)
    return len(model.graph)


def tensor_table(graph: GraphSpec) -> Table:
    """Return a table of the inputs and outputs of one graph."""
    table = make_table(left(""), left("tensor"), left("type"), left("shape"), left("role"), title=graph.file)
    for direction, specs in (("in", graph.inputs), ("out", graph.outputs)):
        for spec in specs:
            add_row(table, direction, spec.name, spec.dtype, _shape(spec), spec.role)
    return table


def _shape(spec: TensorSpec) -> str:
    return f"({', '.join(map(str, spec.shape))})"
