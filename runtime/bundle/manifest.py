"""Reads and writes the manifest of a bundle: a folder with one ONNX graph for each part of a model.

====================  ================================================================================
manifest.json         format, dtypes, each graph's inputs and outputs, size and sha256 of every file
config.json           the model's configuration
entropy.onnx          patcher (unless patches need none)
encoder.onnx          byte states and patch embeddings
global.onnx           latents and their decoder keys and values
decoder.onnx          distributions of bytes
draft.onnx            the same for rows of blocks (models with a draft decoder)
*.onnx.data           weights of large graphs
embeddings.safetensors  byte and hash n-gram embeddings, gathered on the host (unless inside the encoder)
====================  ================================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.models import limits
from fastblt.models.reading import open_regular, read_json
from fastblt.models.shown import shown
from fastblt.runtime.bundle.dtypes import DTYPES, TENSOR_TYPES
from fastblt.runtime.bundle.json_entries import JsonEntries, is_file_name, is_integer, is_name

FORMAT = "fastblt-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
EMBEDDINGS_FILE = "embeddings.safetensors"
#: Size of the first axis of a graph's tensors: the sequences of a call.
BATCH = "batch"
#: Places of a bundle's hash tables, and the sets of operators that its graphs are made of.
HASH_TABLES = ("host", "graph")
OPERATORS = ("standard", "lowered")
#: Graph of each part of every model.
GRAPH_FILES = {
    "patcher": "entropy.onnx",
    "encoder": "encoder.onnx",
    "global": "global.onnx",
    "decoder": "decoder.onnx",
}
#: The same, and that of the draft decoder.
KNOWN_GRAPHS = {**GRAPH_FILES, "draft": "draft.onnx"}
#: Graphs that only some models have: those whose patches are closed by entropy, those with a draft decoder.
OPTIONAL_GRAPHS = ("patcher", "draft")


#: Bytes of a file that are read at a time.
_PIECE = 2**20
#: What a file's digest looks like.
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BundleError(ValueError):
    """Reports a bundle that cannot be used; the message names the file, what was found and what is expected."""


@dataclass(frozen=True)
class TensorSpec:
    """Describes an input or output of a graph."""

    name: str
    dtype: str
    """numpy's name: float32, float16, bfloat16 or int64."""
    shape: tuple[int | str, ...]
    """Sizes; a name is a size that each call chooses."""
    role: str
    """What a runtime binds there, e.g. ``cache``; the ``cache_update`` of ``key_0`` is ``key_0_out``."""


@dataclass(frozen=True)
class GraphSpec:
    """Describes one graph."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int
    """Bytes of weights that a call reads (embedding tables excluded)."""

    def input(self, name: str) -> TensorSpec | None:
        """Return the input of this name; None: there is none."""
        return next((spec for spec in self.inputs if spec.name == name), None)


@dataclass(frozen=True)
class Manifest:
    """Describes a bundle and every file in it."""

    model: str
    dtype: str
    """fp32, fp16 or bf16: type of weights, activations and caches, the patcher excepted (fp32)."""
    opset: int
    hash_tables: str
    """``host`` (embeddings.safetensors) or ``graph``."""
    graphs: dict[str, GraphSpec]
    """By part: patcher (unless patches need none), encoder, global, decoder, draft (if there is such a decoder)."""
    files: dict[str, dict[str, Any]]
    """Size in bytes and sha256 of every other file."""
    verification: list[dict[str, Any]]
    """Largest difference from the eager model, per graph, output and number of rows."""
    operators: str = "standard"
    """``standard``, or ``lowered``: without Attention and TensorScatter, for TensorRT that has no such layers."""
    quantization: dict[str, Any] | None = None
    """What ``fastblt quantize`` did: ``scheme``, ``graphs`` (by part, the precision of each layer), ``quality``."""

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of weights that calls of all graphs read; embedding tables stay in their files."""
        return sum(spec.weight_bytes for spec in self.graphs.values())

    @property
    def batches(self) -> bool:
        """Return whether a call of a graph may hold several sequences; those of earlier versions hold one."""
        specs = (spec for graph in self.graphs.values() for spec in (*graph.inputs, *graph.outputs))
        return any(BATCH in spec.shape for spec in specs)

    @property
    def quantized_parts(self) -> tuple[str, ...]:
        """Return the parts whose graphs have quantized layers."""
        return tuple(self.quantization["graphs"]) if self.quantization else ()

    @property
    def precisions(self) -> set[str]:
        """Return the labels of the precisions that layers were quantized to, e.g. ``w4/32``, ``int8`` or ``fp8``."""
        graphs = self.quantization["graphs"] if self.quantization else {}
        return {label for layers in graphs.values() for label in layers.values()}

    @property
    def digest(self) -> str:
        """Return the sha256 of the manifest, which holds that of every file; 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``manifest.json`` holds, in plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"format": FORMAT, "version": FORMAT_VERSION, **plain}


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file.

    Raises:
        BundleError: it cannot be read, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            digest = hashlib.sha256()
            while piece := file.read(_PIECE):
                digest.update(piece)
            return digest.hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}), expected a file of a bundle") from error


def check_own_file(path: Path) -> None:
    """Check that a path is a regular file of its folder, which nothing but that folder can change.

    A link may lead to another file of the folder, or to the blobs of a hub's cache if the folder is one of its
    snapshots.

    Raises:
        BundleError: it is missing, is a pipe, device or folder, or links to something outside.
    """
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: missing, expected a file") from error
    if not stat.S_ISREG(kind):
        raise BundleError(f"{path}: found a folder, pipe or device, expected a file")
    if path.is_symlink():
        target, folder = path.resolve(), path.parent.resolve()
        blobs = folder.parent.parent / "blobs"
        inside = target.is_relative_to(folder) or (folder.parent.name == "snapshots" and target.is_relative_to(blobs))
        if not inside:
            raise BundleError(f"{path}: found a link to {target}, expected a file of this folder")


def check_size(path: Path, size: int) -> None:
    """Compare the size of a file with what a manifest lists.

    Raises:
        BundleError: as `check_own_file`, or it has another size in bytes.
    """
    if not os.path.lexists(path):
        raise BundleError(f"{path}: missing, expected {size} bytes")
    check_own_file(path)
    found = path.stat().st_size
    if found != size:
        raise BundleError(f"{path}: found {found} bytes, expected {size}")


def check_file(path: Path, size: int, sha256: str) -> None:
    """Compare a file with what a manifest lists.

    Raises:
        BundleError: as `check_size`, or it has another sha256.
    """
    check_size(path, size)
    digest = sha256_of(path)
    if digest != sha256:
        raise BundleError(f"{path}: found sha256 {digest}, expected {sha256}")


def read_file_entry(entry: JsonEntries) -> dict[str, Any]:
    """Return ``bytes`` and ``sha256`` of a manifest's entry about a file."""
    return {"bytes": entry.integer("bytes", 0, limits.FILE_BYTES), "sha256": read_digest(entry, "sha256")}


def read_digest(entry: JsonEntries, name: str) -> str:
    """Return an entry that is a sha256."""
    digest = entry.data.get(name)
    entry.expect(isinstance(digest, str) and _SHA256.fullmatch(digest) is not None, name, "64 hexadecimal digits")
    return str(digest)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write a manifest that lists every file of a folder, and return it.

    Args:
        folder: with every other file of the bundle.
        manifest: entries of files that it lists are kept; size and digest of the others are measured.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    known = manifest.files
    files = {p.name: known.get(p.name) or {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths}
    complete = dataclasses.replace(manifest, files=files)
    text = json.dumps(complete.to_dict(), indent=1) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return complete


def is_bundle(folder: Path) -> bool:
    """Return whether a folder has the manifest of a bundle, of any version."""
    try:
        data = read_json(folder / MANIFEST_FILE, BundleError, "a manifest")
    except BundleError:
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def load_manifest(bundle: Path) -> Manifest:
    """Read a bundle's manifest; the other files are not touched.

    Raises:
        BundleError: there is no manifest, or it is not one of a bundle that this version reads.
    """
    path = bundle / MANIFEST_FILE
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: not a folder, expected a bundle (fastblt export writes one)")
    if not path.exists() and (bundle / CONFIG_FILE).is_file() and not any(bundle.glob("*.onnx")):
        raise BundleError(f"{bundle}: found a checkpoint, expected a bundle (fastblt export makes one of it)")
    if path.is_symlink():
        check_own_file(path)
    data = read_json(path, BundleError, f"a bundle's {path.name}")
    found = (data.get("format"), data.get("version")) if isinstance(data, dict) else data
    if found != (FORMAT, FORMAT_VERSION):
        raise BundleError(f"{path}: found format {shown(found)}, expected {(FORMAT, FORMAT_VERSION)}")
    return _read_manifest(JsonEntries(path, data, BundleError))


def _read_manifest(data: JsonEntries) -> Manifest:
    listed = data.object("files", limits.FILES)
    for name in listed.data:
        listed.expect(is_file_name(name), name, "a plain file name", name)
    files = {name: read_file_entry(listed.object(name)) for name in listed.data}
    graphs = data.object("graphs", len(KNOWN_GRAPHS))
    for part in graphs.data:
        graphs.expect(part in KNOWN_GRAPHS, part, f"one of {', '.join(KNOWN_GRAPHS)}", part)
    return Manifest(
        data.text("model"),
        data.one_of("dtype", DTYPES),
        data.integer("opset", 1, limits.OPSET),
        data.one_of("hash_tables", HASH_TABLES),
        {
            part: _read_graph(graphs.object(part), part, files)
            for part in KNOWN_GRAPHS
            if part in graphs.data or part not in OPTIONAL_GRAPHS
        },
        files,
        [_read_comparison(item) for item in data.objects("verification", limits.COMPARISONS)],
        # Manifests of earlier versions lack it.
        data.one_of("operators", OPERATORS) if "operators" in data.data else OPERATORS[0],
        _read_quantization(data, graphs.data) if data.data.get("quantization") is not None else None,
    )


def _read_comparison(item: JsonEntries) -> dict[str, Any]:
    """Check what was noted of one output that was compared with the eager model."""
    item.text("graph")
    item.text("output")
    item.number("max_error")
    return item.data


def _read_quantization(data: JsonEntries, parts: Collection[str]) -> dict[str, Any]:
    found = data.object("quantization")
    found.text("scheme")
    graphs = found.object("graphs")
    for part in graphs.data:
        graphs.expect(part in parts, part, "one of the manifest's graphs", part)
        layers = graphs.object(part)
        for name in layers.data:
            layers.text(name)
    return found.data


def _read_graph(data: JsonEntries, part: str, files: Collection[str]) -> GraphSpec:
    file = data.one_of("file", [KNOWN_GRAPHS[part]])
    data.expect(file in files, "file", "one of the manifest's files")
    inputs, outputs = (data.objects(side, limits.TENSORS) for side in ("inputs", "outputs"))
    weights = data.integer("weight_bytes", 0, limits.FILE_BYTES)
    return GraphSpec(file, tuple(map(_read_tensor, inputs)), tuple(map(_read_tensor, outputs)), weights)


def _read_tensor(data: JsonEntries) -> TensorSpec:
    shape = data.items("shape", limits.RANK)
    sizes = all(is_integer(size, 1, limits.SIZE) or is_name(size) for size in shape)
    data.expect(sizes, "shape", "a list of positive integers and names")
    return TensorSpec(data.text("name"), data.one_of("dtype", tuple(TENSOR_TYPES)), tuple(shape), data.text("role"))
