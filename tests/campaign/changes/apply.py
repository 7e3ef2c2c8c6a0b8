"""Applies changes to the files of a folder, and proposes them by the kinds of its files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from campaign.changes import json_file, onnx_file, pth_file, raw_file, safetensors_file

Change = dict[str, Any]

#: By the first word of a change's ``op``.
_FORMATS: dict[str, Any] = {"json": json_file, "safetensors": safetensors_file, "onnx": onnx_file, "pth": pth_file}


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
    elif path.suffix == ".pth":
        change = pth_file.propose(rng, path)
    else:
        change = raw_file.propose(rng, path)
    return {"file": name, **change}


def apply(folder: Path, changes: list[Change]) -> None:
    """Apply changes one after the other."""
    for change in changes:
        path = folder / change["file"]
        family = change["op"].partition(" ")[0]
        if family in _FORMATS and not path.is_file():
            continue
        _FORMATS.get(family, raw_file).apply(path, change)
