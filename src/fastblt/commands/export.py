"""``fastblt export``: writes a bundle, compares it with PyTorch, and prints what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checkpoints import read_checkpoint
from fastblt.commands.checks import check_bundle_target, check_checkpoint, pinned
from fastblt.commands.choice import Choice
from fastblt.commands.graphs import graph_table
from fastblt.commands.options import (
    CheckpointArgument,
    DocumentMasksOption,
    Dtype,
    ForceOption,
    PatcherOption,
    RevisionOption,
)
from fastblt.commands.output import print_table, progress, stderr, stdout
from fastblt.commands.polygraphy import PolygraphyOption, check_polygraphy_target, write_polygraphy
from fastblt.runtime.bundle.bundle import Bundle


class HashTables(Choice):
    """Where a bundle keeps its hash n-gram tables."""

    HOST = "host"
    GRAPH = "graph"


def command(
    checkpoint: CheckpointArgument,
    bundle: Annotated[Path, typer.Argument(help="Folder to write the bundle to.")],
    dtype: Annotated[
        Dtype, typer.Option(help="Type of weights, activations and caches. CPUs run fp32 and fp16.")
    ] = Dtype.FP32,
    hash_tables: Annotated[
        HashTables,
        typer.Option(
            help="Where the tables of byte n-grams are: host: in a file that is mapped into memory, beside the graphs; "
            "graph: inside the encoder's graph."
        ),
    ] = HashTables.HOST,
    lowered: Annotated[
        bool, typer.Option("--lowered", help="Use only operators that TensorRT before version 10.15 knows.")
    ] = False,
    force: ForceOption = False,
    patcher: PatcherOption = None,
    revision: RevisionOption = None,
    document_masks: DocumentMasksOption = None,
    polygraphy: PolygraphyOption = None,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs.

    Every graph is compared with the PyTorch model before the bundle appears; if something fails, nothing is left
    behind. The checkpoint's layout is recognized by its content.
    """
    checkpoint = pinned(checkpoint, revision)
    check_checkpoint(checkpoint)
    check_checkpoint(patcher)
    check_bundle_target(bundle, force=force)
    check_polygraphy_target(polygraphy, bundle)
    from fastblt.export.bundle_writer import export_bundle

    source = read_checkpoint(stderr(), checkpoint, patcher=patcher, document_masks=document_masks)
    with progress("exporting") as on_progress:
        export_bundle(
            source,
            bundle,
            dtype=dtype.value,
            hash_tables=hash_tables.value,
            lowered=lowered,
            force=force,
            on_progress=on_progress,
        )
    _print_bundle(bundle)
    write_polygraphy(bundle, polygraphy)


def _print_bundle(bundle: Path) -> None:
    manifest = Bundle.open(bundle, check=False).manifest
    console = stdout()
    place = "on the host" if manifest.hash_tables == "host" else "in the graph"
    kind = f"{manifest.dtype}, opset {manifest.opset} ({manifest.operators})"
    console.print(f"{bundle}: {manifest.model}, {kind}, hash tables {place}", soft_wrap=True)
    print_table(console, graph_table(bundle, manifest))
