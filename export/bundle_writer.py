"""Checkpoint in, bundle out: graphs, embedding tables, manifest; all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from fastblt.export.verification import verify_bundle
from fastblt.export.weights import CheckpointWeights
from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import HASH_TABLE, Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.safetensors_writer import Table, write_tables
from fastblt.models.formats.stores import DTYPE_NAMES
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    GRAPH_FILES,
    GraphSpec,
    Manifest,
    TensorSpec,
    is_bundle,
    write_manifest,
)

#: Vocabulary of a bundle's graphs, by the manifest's ``operators``.
GRAPH_KINDS = {"standard": BltGraph, "lowered": LoweredGraph}


class ExportError(ValueError):
    """An export that cannot be done as asked."""


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    bundle: Path,
    *,
    dtype: str = "fp32",
    hash_tables: str = "host",
    lowered: bool = False,
    verify: bool = True,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Export a checkpoint.

    Args:
        checkpoint: of any layout, see `open_checkpoint`; or one that is open.
        bundle: folder to write; an earlier bundle there is replaced when the new one is complete and verified.
        dtype: ``fp32``, ``fp16`` or ``bf16``; the patcher stays fp32.
        hash_tables: ``host``, gathered by the runtime from a memory-mapped file, or ``graph``.
        lowered: write graphs of opset 18 without attention and cache updates, for TensorRT before 10.15.
        verify: compare every graph with the eager model before the bundle appears.
        report: told what is being done.

    Returns:
        The manifest as plain JSON types.

    Raises:
        ExportError: an option is unknown, or ``bundle`` exists and is not a bundle.
        CheckpointError: the checkpoint is not usable.
        VerificationError: a graph differs from the eager model.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if dtype not in BUNDLE_TYPES:
        raise ExportError(f"dtype: found {dtype!r}, expected one of {', '.join(BUNDLE_TYPES)}")
    if hash_tables not in ("host", "graph"):
        raise ExportError(f"hash_tables: found {hash_tables!r}, expected host or graph")
    if bundle.exists() and not is_bundle(bundle) and (not bundle.is_dir() or any(bundle.iterdir())):
        raise ExportError(f"{bundle}: exists and is not a bundle, expected a new name or a bundle to replace")
    on_progress = report or (lambda text: None)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    weights = CheckpointWeights(source)
    operators = "lowered" if lowered else "standard"
    opset = GRAPH_KINDS[operators].opset
    with replacing_folder(bundle) as new:
        weights.config.save(new / CONFIG_FILE)
        graphs = {}
        for part, graph in _build_graphs(weights, dtype, GRAPH_KINDS[operators], hash_tables == "graph"):
            on_progress(f"writing {GRAPH_FILES[part]}")
            graphs[part] = _write_graph(graph, new / GRAPH_FILES[part])
        if hash_tables == "host":
            on_progress(f"writing {EMBEDDINGS_FILE}")
            _write_embeddings(weights, new / EMBEDDINGS_FILE, dtype)
        manifest = Manifest(weights.config.name, dtype, opset, hash_tables, graphs, {}, [], operators)
        manifest = write_manifest(new, manifest)
        if verify:
            on_progress("comparing every graph with the eager model")
            manifest.verification.extend(verify_bundle(new, weights, dtype))
            manifest = write_manifest(new, manifest)
    return manifest.to_dict()


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


def _write_graph(graph: BltGraph, path: Path) -> GraphSpec:
    """Write a graph, its weights streamed from the checkpoint."""
    model = ir.Model(graph.graph, ir_version=graph.ir_version, producer_name="fastblt")
    try:
        weight_bytes = save_graph(model, path)
    except ir.serde.SerdeError as error:
        raise _cause(error) from error
    return GraphSpec(
        path.name,
        tuple(_spec(value, graph.roles) for value in graph.graph.inputs),
        tuple(_spec(value, graph.roles) for value in graph.graph.outputs),
        weight_bytes,
    )


def _cause(error: BaseException) -> BaseException:
    """What went wrong while a weight was read, without the wrapping of the serialiser."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, CheckpointError | OSError):
        found = found.__cause__ or found.__context__
    return found or error


def _spec(value: ir.Value, roles: dict[str, str]) -> TensorSpec:
    assert value.name
    assert value.dtype
    assert value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, str(value.dtype.numpy()), shape, roles[value.name])


def _write_embeddings(weights: CheckpointWeights, path: Path, dtype: str) -> None:
    tables = {}
    for name in ("encoder.tok_embeddings.weight", HASH_TABLE):
        kind = weights.table_dtype(name, ir.DataType(BUNDLE_TYPES[dtype].onnx))
        shape = list(weights.checkpoint.shape(name))
        tables[name] = Table(DTYPE_NAMES[kind], kind.itemsize, shape, partial(weights.chunks, name, kind))
    write_tables(path, tables)
