"""Looks at what an export has left in a folder."""

from __future__ import annotations

from pathlib import Path

from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    GRAPH_FILES,
    MANIFEST_FILE,
)

FILES = {MANIFEST_FILE, CONFIG_FILE, EMBEDDINGS_FILE, *GRAPH_FILES.values()}
#: A tensor of each file, all of them written in the graph's type (the patcher's in fp32).
TENSORS = {
    "patcher.layers.0.wqkv.weight": "entropy.onnx",
    "patcher.tok_embeddings.weight": "entropy.onnx",
    "encoder.layers.0.feed_forward.w2.weight": "encoder.onnx",
    "encoder.cross_attention.wkv.weight": "encoder.onnx",
    "encoder.patch_projection.weight": "encoder.onnx",
    "global_transformer.layers.1.feed_forward.w13.weight": "global.onnx",
    "decoder.cross_layers.1.wkv.weight": "global.onnx",
    "decoder.patch_projection.weight": "global.onnx",
    "decoder.layers.1.wo.weight": "decoder.onnx",
    "decoder.output.weight": "decoder.onnx",
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_nothing_is_left(out: Path) -> None:
    """No bundle and no temporary folder or file, hidden or not."""
    assert not out.exists() or list(out.iterdir()) == []


def assert_only(bundle: Path, expected: dict[str, bytes]) -> None:
    """The bundle is what it was, and alone in its folder."""
    assert list(bundle.parent.iterdir()) == [bundle]
    assert contents(bundle) == expected
