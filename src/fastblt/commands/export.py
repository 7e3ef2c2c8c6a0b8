"""``fastblt export``: write a bundle and print what is in it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fastblt.commands.graphs import graph_table
from fastblt.export.bundle_writer import export_bundle
from fastblt.models.formats.open import open_checkpoint
from fastblt.runtime.bundle.bundle import Bundle


def run(
    checkpoint: str,
    bundle: Path,
    *,
    dtype: str,
    hash_tables: str,
    lowered: bool = False,
    patcher: str | None = None,
    document_masks: bool | None = None,
) -> None:
    """Say what the checkpoint is, export, verify, and print a table of the bundle's files.

    Raises:
        ValueError: the checkpoint, an option or the target folder cannot be used, or a graph differs from the eager
            model.
        OSError: the bundle cannot be written.
    """
    progress = Console(stderr=True, highlight=False)
    with progress.status("reading the checkpoint") as status:
        source = open_checkpoint(checkpoint, patcher=patcher, document_masks=document_masks)
        progress.print(f"{checkpoint}: found {source.layout.description}", soft_wrap=True)
        export_bundle(source, bundle, dtype=dtype, hash_tables=hash_tables, lowered=lowered, report=status.update)
    manifest = Bundle.open(bundle, check=False).manifest
    console = Console(highlight=False)
    place = "on the host" if manifest.hash_tables == "host" else "in the graph"
    kind = f"{manifest.dtype}, opset {manifest.opset} ({manifest.operators})"
    console.print(
        f"{bundle}: {manifest.model}, {kind}, hash tables {place}",
        soft_wrap=True,
    )
    console.print(graph_table(bundle, manifest))
