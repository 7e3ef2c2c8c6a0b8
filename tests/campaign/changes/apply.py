"""Applies changes to the files of a folder, and proposes them by the kinds of its files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from campaign.changes import json_file, onnx_file, raw_file, safetensors_file

Change = dict[str, Any]


def propose(rng: random.Random, folder: Path, name: str) -> Change:
    """Return a change of one file of a folder: mostly of its content, as its format has it."""
    path = folder / name
    change: Change
    if rng.random() < 0.2:
        change = raw_file.propose(rng, path)
    elif path.suffix == ".json":
        change = json_file.propose(rng, path)
    elif path.suffix == ".safetensors":
        change = safetensors_file.propose(rng, path)
    elif path.suffix == ".onnx":
        change = onnx_file.propose(rng, path)
    else:
        change = raw_file.propose(rng, path)
    return {"file": name, **change}


def apply(folder: Path, changes: list[Change]) -> None:
    """Apply changes one after the other."""
    for change in changes:
        path = folder / change["file"]
        family = change["op"].partition(" ")[0]
        module = {"json": json_file, "safetensors": safetensors_file, "onnx": onnx_file}.get(family, raw_file)
        if family in ("json", "safetensors", "onnx") and not path.is_file():
            continue
        module.apply(path, change)
