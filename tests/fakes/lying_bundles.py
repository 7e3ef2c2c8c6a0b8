"""Changes bundles like somebody who knows the format: one lie, and everything else fits again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from fastblt.runtime.bundle.manifest import MANIFEST_FILE, sha256_of

Data = dict[str, Any]
Edit = Callable[[Data], object]

ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "float64": TensorProto.DOUBLE,
}


def linked(bundle: Path, folder: Path) -> Path:
    """Copy a bundle with hard links, but for its JSON files, which tests change in place."""
    for path in bundle.rglob("*"):
        target = folder / path.relative_to(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            target.write_bytes(path.read_bytes())
        elif path.is_file():
            os.link(path, target)
    return folder


def replace(path: Path, data: bytes) -> None:
    """Replace a file that may be a link."""
    path.unlink()
    path.write_bytes(data)


def change(path: Path, edit: Edit) -> None:
    """Change a JSON file; ``edit`` works in place."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def sign(bundle: Path, *names: str) -> None:
    """Let the manifest list sizes and digests of these files again."""

    def update(data: Data) -> None:
        for name in names:
            data["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": sha256_of(bundle / name)}

    change(bundle / MANIFEST_FILE, update)


def tensor(data: Data, part: str, name: str) -> Data:
    """Return the entry of an input or output of a graph."""
    graph = data["graphs"][part]
    found: Data = next(each for each in (*graph["inputs"], *graph["outputs"]) if each["name"] == name)
    return found


def retype_graph(model: onnx.ModelProto, name: str, kind: str) -> None:
    """Let a graph declare another type of one input or output, and convert inside, so that it stays valid."""
    inner = f"{name}.inner"
    for side, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in (value for value in values if value.name == name):
            before, value.type.tensor_type.elem_type = value.type.tensor_type.elem_type, ELEMENTS[kind]
            for node in model.graph.node:
                names = node.input if side == "input" else node.output
                for index, each in enumerate(names):
                    names[index] = inner if each == name else each
            if side == "input":
                model.graph.node.insert(0, helper.make_node("Cast", [name], [inner], to=before))
            else:
                for node in model.graph.node:  # an output that other nodes read, too
                    for index, each in enumerate(node.input):
                        node.input[index] = inner if each == name else each
                model.graph.node.append(helper.make_node("Cast", [inner], [name], to=ELEMENTS[kind]))


def retype_graph_file(path: Path, names: list[str], kind: str) -> None:
    """Apply `retype_graph` to a file."""
    model = onnx.load(path)
    for name in names:
        retype_graph(model, name, kind)
    replace(path, model.SerializeToString())
