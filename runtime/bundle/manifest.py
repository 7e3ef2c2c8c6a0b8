"""Reads and writes the manifest of a bundle: a folder with one ONNX graph for each part of a model.

====================  ================================================================================
manifest.json         format, dtypes, each graph's inputs and outputs, size and sha256 of every file
config.json           the model's configuration
entropy.onnx          patcher (unless patches need none)
encoder.onnx          byte states and patch embeddings
global.onnx           latents and their decoder keys and values
decoder.onnx          distributions of bytes
*.onnx.data           weights of large graphs
embeddings.safetensors  byte and hash n-gram embeddings, gathered on the host (unless inside the encoder)
====================  ================================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastblt.runtime.bundle.dtypes import DTYPES, TENSOR_TYPES

FORMAT = "fastblt-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
EMBEDDINGS_FILE = "embeddings.safetensors"
#: Places of a bundle's hash tables, and the sets of operators that its graphs are made of.
HASH_TABLES = ("host", "graph")
OPERATORS = ("standard", "lowered")
#: Graph of each part.
GRAPH_FILES = {
    "patcher": "entropy.onnx",
    "encoder": "encoder.onnx",
    "global": "global.onnx",
    "decoder": "decoder.onnx",
}
#: Graphs that only some models have: those whose patches are closed by entropy.
OPTIONAL_GRAPHS = ("patcher",)


_KINDS = {"dict": "an object", "list": "a list", "str": "a string", "int": "an integer"}
_Value = TypeVar("_Value", dict[str, Any], list[Any], str, int)


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
    """By part: patcher (unless patches need none), encoder, global, decoder."""
    files: dict[str, dict[str, Any]]
    """Size in bytes and sha256 of every other file."""
    verification: list[dict[str, Any]]
    """Largest difference from the eager model, per graph, output and number of rows."""
    operators: str = "standard"
    """``standard``, or ``lowered``: without Attention and TensorScatter, for TensorRT that has no such layers."""
    quantization: dict[str, Any] | None = None
    """What ``fastblt quantize`` did: ``scheme``, ``graphs`` (by part, the precision of each layer), ``quality``."""

    @property
    def quantized_parts(self) -> tuple[str, ...]:
        """Return the parts whose graphs have quantized layers."""
        return tuple(self.quantization["graphs"]) if self.quantization else ()

    @property
    def precisions(self) -> set[str]:
        """Return the labels of the precisions that layers were quantized to, e.g. ``w4/32``, ``int8`` or ``fp8``."""
        graphs = self.quantization["graphs"] if self.quantization else {}
        return {label for layers in graphs.values() for label in layers.values()}

    def to_dict(self) -> dict[str, Any]:
        """Return what ``manifest.json`` holds, in plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"format": FORMAT, "version": FORMAT_VERSION, **plain}


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, size: int, sha256: str) -> None:
    """Compare a file with what a manifest lists.

    Raises:
        BundleError: it is missing, or differs in size, in bytes, or in sha256.
    """
    if not path.is_file():
        raise BundleError(f"{path}: missing, expected {size} bytes")
    found = path.stat().st_size
    if found != size:
        raise BundleError(f"{path}: found {found} bytes, expected {size}")
    digest = sha256_of(path)
    if digest != sha256:
        raise BundleError(f"{path}: found sha256 {digest}, expected {sha256}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}), expected a bundle's {path.name}") from error
    except ValueError as error:
        raise BundleError(f"{path}: not JSON ({error})") from error


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
        data = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
    data = _read_json(path)
    found = (data.get("format"), data.get("version")) if isinstance(data, dict) else data
    if found != (FORMAT, FORMAT_VERSION):
        raise BundleError(f"{path}: found format {found}, expected {(FORMAT, FORMAT_VERSION)}")
    return _ManifestReader(path, data).manifest()


class _ManifestReader:
    """Turns the JSON of a manifest into dataclasses; anything wrong is one error that names the entry."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    def manifest(self) -> Manifest:
        files = self._get(self.data, "files", dict)
        for name in files:
            entry = self._get(files, name, dict)
            self._get(entry, "bytes", int)
            self._get(entry, "sha256", str)
            self._expect(Path(name).name == name, f"files.{name}", name, "a plain file name")
        graphs = self._get(self.data, "graphs", dict)
        return Manifest(
            self._get(self.data, "model", str),
            self._one_of("dtype", DTYPES),
            self._get(self.data, "opset", int),
            self._one_of("hash_tables", HASH_TABLES),
            {
                part: self._graph(self._get(graphs, part, dict), files)
                for part in GRAPH_FILES
                if part in graphs or part not in OPTIONAL_GRAPHS
            },
            files,
            self._get(self.data, "verification", list),
            # Manifests of earlier versions lack it.
            self._one_of("operators", OPERATORS) if "operators" in self.data else OPERATORS[0],
            self._quantization(graphs) if self.data.get("quantization") is not None else None,
        )

    def _quantization(self, graphs: dict[str, Any]) -> dict[str, Any]:
        found = self._get(self.data, "quantization", dict)
        self._get(found, "scheme", str)
        for part, layers in self._get(found, "graphs", dict).items():
            self._expect(part in graphs, "quantization.graphs", part, "one of the manifest's graphs")
            named = isinstance(layers, dict) and all(isinstance(label, str) for label in layers.values())
            self._expect(named, "quantization.graphs", layers, "a precision for each layer")
        return found

    def _graph(self, data: dict[str, Any], files: dict[str, Any]) -> GraphSpec:
        file = self._get(data, "file", str)
        self._expect(file in files, "file", file, "one of the manifest's files")
        return GraphSpec(
            file,
            tuple(self._tensor(item) for item in self._get(data, "inputs", list)),
            tuple(self._tensor(item) for item in self._get(data, "outputs", list)),
            self._get(data, "weight_bytes", int),
        )

    def _tensor(self, data: Any) -> TensorSpec:
        self._expect(isinstance(data, dict), "inputs or outputs", data, "a list of objects")
        shape = self._get(data, "shape", list)
        sizes = all(isinstance(size, int | str) for size in shape)
        self._expect(sizes, "shape", shape, "a list of integers and names")
        kind = self._get(data, "dtype", str)
        self._expect(kind in TENSOR_TYPES, "dtype", kind, f"one of {', '.join(TENSOR_TYPES)}")
        return TensorSpec(self._get(data, "name", str), kind, tuple(shape), self._get(data, "role", str))

    def _one_of(self, name: str, values: tuple[str, ...]) -> str:
        found = self._get(self.data, name, str)
        self._expect(found in values, name, found, f"one of {', '.join(values)}")
        return found

    def _get(self, data: dict[str, Any], name: str, kind: type[_Value]) -> _Value:
        value = data.get(name)
        right = isinstance(value, kind) and not isinstance(value, bool)
        self._expect(right, name, value, _KINDS[kind.__name__])
        assert isinstance(value, kind)
        return value

    def _expect(self, condition: bool, name: str, found: object, expected: str) -> None:
        if not condition:
            raise BundleError(f"{self.path}: entry {name!r}: found {found!r:.80}, expected {expected}")
