"""Exports a checkpoint to a bundle (graphs, embedding tables, manifest) atomically."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fastblt.export.decoder_graph import build_decoder_graph
from fastblt.export.encoder_graph import build_encoder_graph
from fastblt.export.entropy_graph import build_entropy_graph
from fastblt.export.global_graph import build_global_graph
from fastblt.export.graph_builder import BltGraph
from fastblt.export.graph_file import save_graph
from fastblt.export.lowered_graph import LoweredGraph
from fastblt.export.verification import count_checks, verify_bundle
from fastblt.export.weights import CheckpointWeights
from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import HASH_TABLE, Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.merged_draft import merged_draft
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.safetensors_writer import Table, write_tables
from fastblt.models.formats.stores import DTYPE_NAMES
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES
from fastblt.runtime.bundle.graph_model import describe
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    KNOWN_GRAPHS,
    GraphSpec,
    Manifest,
    write_manifest,
)
from fastblt.runtime.bundle.target import check_bundle_target
from fastblt.runtime.progress import OnProgress, no_progress, part_of

#: How the graphs of a bundle are built, by the manifest's ``operators``.
GRAPH_KINDS = {"standard": BltGraph, "lowered": LoweredGraph}


class ExportError(ValueError):
    """Reports an export that cannot be done as requested."""


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    bundle: Path,
    *,
    dtype: str = "fp32",
    hash_tables: str = "host",
    lowered: bool = False,
    verify: bool = True,
    force: bool = False,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Export a checkpoint.

    Args:
        checkpoint: path or id of a checkpoint of any layout, see `open_checkpoint`; or an open one.
        bundle: folder to write.
        dtype: ``fp32``, ``fp16`` or ``bf16``; the patcher stays fp32.
        hash_tables: ``host``, gathered by the runtime from a memory-mapped file, or ``graph``.
        lowered: write graphs of opset 18 without attention and cache updates, for TensorRT before 10.15.
        verify: compare every graph with the eager model before the bundle appears.
        force: replace an earlier bundle in that folder, once the new one is complete and verified.
        on_progress: its steps are the files to write and, with ``verify``, the calls of graphs to compare.

    Returns:
        The manifest as plain JSON types.

    Raises:
        ExportError: an option is unknown.
        TargetError: ``bundle`` exists, and is not a bundle or may not be replaced.
        CheckpointError: the checkpoint cannot be used.
        VerificationError: a graph differs from the eager model.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if dtype not in BUNDLE_TYPES:
        raise ExportError(f"dtype: found {dtype!r}, expected one of {', '.join(BUNDLE_TYPES)}")
    if hash_tables not in ("host", "graph"):
        raise ExportError(f"hash_tables: found {hash_tables!r}, expected host or graph")
    check_bundle_target(bundle, force=force)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    weights = CheckpointWeights(merged_draft(source))
    operators = "lowered" if lowered else "standard"
    files = len(weights.config.graph_stacks) + (hash_tables == "host")
    steps = files + (count_checks(weights.config) if verify else 0)
    with replacing_folder(bundle) as new:
        writing = part_of(on_progress, 0, steps, "writing")
        manifest = write_manifest(new, _write_files(weights, new, dtype, operators, hash_tables, writing))
        Bundle.open(new, check=False).check_tables()  # manifest and tables are what the configuration requires
        if verify:
            comparing = part_of(on_progress, files, steps, "comparing with PyTorch:")
            manifest.verification.extend(verify_bundle(new, weights, dtype, comparing))
            manifest = write_manifest(new, manifest)
    on_progress(steps, steps, "")
    return manifest.to_dict()


def _write_files(
    weights: CheckpointWeights, folder: Path, dtype: str, operators: str, hash_tables: str, on_progress: OnProgress
) -> Manifest:
    """Write configuration, graphs and tables; return their manifest, without digests."""
    weights.config.save(folder / CONFIG_FILE)
    kind = GRAPH_KINDS[operators]
    graphs: dict[str, GraphSpec] = {}
    total = len(weights.config.graph_stacks) + (hash_tables == "host")
    for part, graph in _build_graphs(weights, dtype, kind, hash_tables == "graph"):
        on_progress(len(graphs), total, KNOWN_GRAPHS[part])
        graphs[part] = _write_graph(graph, folder / KNOWN_GRAPHS[part])
    if hash_tables == "host":
        on_progress(len(graphs), total, EMBEDDINGS_FILE)
        _write_embeddings(weights, folder / EMBEDDINGS_FILE, dtype)
    return Manifest(weights.config.name, dtype, kind.opset, hash_tables, graphs, {}, [], operators)


def _build_graphs(
    weights: CheckpointWeights, dtype: str, kind: type[BltGraph], tables_inside: bool
) -> Iterator[tuple[str, BltGraph]]:
    config: BltConfig = weights.config
    precision = ir.DataType(BUNDLE_TYPES[dtype].onnx)
    if config.patcher is not None:
        yield "patcher", build_entropy_graph(config, weights, kind)
    yield "encoder", build_encoder_graph(config, weights, precision, kind, tables_inside=tables_inside)
    yield "global", build_global_graph(config, weights, precision, kind)
    yield "decoder", build_decoder_graph(config, weights, precision, kind)
    if config.has_draft:
        yield "draft", build_decoder_graph(config, weights, precision, kind, "draft")


def _write_graph(graph: BltGraph, path: Path) -> GraphSpec:
    """Write a graph, streaming its weights from the checkpoint, and describe it."""
    model = ir.Model(graph.graph, ir_version=graph.ir_version, producer_name="fastblt")
    try:
        weight_bytes = save_graph(model, path)
    except ir.serde.SerdeError as error:
        raise _cause(error) from error
    return GraphSpec(
        path.name,
        tuple(describe(value, graph.roles[value.name or ""]) for value in graph.graph.inputs),
        tuple(describe(value, graph.roles[value.name or ""]) for value in graph.graph.outputs),
        weight_bytes,
    )


def _cause(error: BaseException) -> BaseException:
    """Return the error that occurred while a weight was read, out of those that the serializer wrapped it in."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, CheckpointError | OSError):
        found = found.__cause__ or found.__context__
    return found or error


def _write_embeddings(weights: CheckpointWeights, path: Path, dtype: str) -> None:
    tables = {}
    for name in ("encoder.tok_embeddings.weight", HASH_TABLE):
        kind = weights.table_dtype(name, ir.DataType(BUNDLE_TYPES[dtype].onnx))
        shape = list(weights.checkpoint.shape(name))
        tables[name] = Table(DTYPE_NAMES[kind], kind.itemsize, shape, partial(weights.chunks, name, kind))
    write_tables(path, tables)
