"""Lists the checkpoint layouts; recognition, help, error texts and tables of documentation are generated from it.

Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.fields import read_json
from fastblt.models.formats.hub_id import SYNTAX, hub_hint
from fastblt.models.formats.layout import BUNDLE_FILE, CONFIG_FILE, Layout, WritableLayout
from fastblt.models.formats.meta import MetaHub, MetaRelease
from fastblt.models.formats.own import FastbltLayout
from fastblt.models.formats.random_weights import RandomWeights
from fastblt.models.formats.transformers import TransformersLayout

#: In the order of recognition: the first that recognizes a checkpoint opens it.
LAYOUTS: tuple[Layout, ...] = (RandomWeights(), MetaHub(), TransformersLayout(), FastbltLayout(), MetaRelease())
#: Layouts that checkpoints can be written in, by name.
WRITABLE: dict[str, WritableLayout] = {each.name: each for each in LAYOUTS if isinstance(each, WritableLayout)}
#: A checkpoint folder of any layout has one of these files; a bundle has none.
WEIGHT_FILES = tuple(dict.fromkeys(name for layout in LAYOUTS for name in layout.weight_files))
#: Patterns of everything that a checkpoint on the Hugging Face hub may consist of.
HUB_FILES = tuple(dict.fromkeys(pattern for layout in LAYOUTS for pattern in layout.hub_files))


def layout_named(name: str) -> Layout:
    """Return the layout with this name.

    Raises:
        CheckpointError: there is none; the message lists those that exist.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise CheckpointError(f"layout: found {name!r}, expected one of {', '.join(each.name for each in LAYOUTS)}")


def writable_layout(name: str) -> WritableLayout:
    """Return the layout with this name if checkpoints can be written in it.

    Raises:
        CheckpointError: there is none; the message lists those that exist.
    """
    if name not in WRITABLE:
        raise CheckpointError(f"to: found {name!r}, expected one of {', '.join(WRITABLE)}")
    return WRITABLE[name]


def recognize(path: Path) -> Layout:
    """Return the layout of a checkpoint, judging by its content.

    Args:
        path: a folder, or ``random:PRESET``. An id of the Hugging Face hub must have been resolved
            (`fastblt.models.formats.hub.locate`).

    Raises:
        CheckpointError: it has no layout that is known.
        ConfigError: its ``config.json`` cannot be read, or it names a preset that does not exist.
    """
    file = path / CONFIG_FILE
    config = read_json(file) if file.is_file() else {}
    for layout in LAYOUTS:
        if layout.recognizes(path, config):
            return layout
    if (path / BUNDLE_FILE).is_file():
        raise CheckpointError(f"{path}: found a bundle ({BUNDLE_FILE}), expected the checkpoint that it was made of")
    hint = "" if path.exists() else hub_hint(str(path))
    raise CheckpointError(f"{path}: found {_found(path)}, expected a checkpoint: {_expected()}{hint}")


def layouts_help() -> str:
    """Return what an argument that takes a checkpoint accepts, for help texts."""
    folders = [layout.description for layout in LAYOUTS if layout.files]
    others = [f"{layout.title} ({layout.description})".replace("`", "") for layout in LAYOUTS if not layout.files]
    return f"a folder ({_alternatives(folders)}), an id of the Hugging Face hub ({SYNTAX}), or {_alternatives(others)}"


def layouts_table() -> str:
    """Return the table of layouts in docs/checkpoints.md (Markdown)."""
    rows = [f"| {each.title} | {each.contents} | {each.recognized_by} |" for each in LAYOUTS]
    return "\n".join(["| layout | contents | recognized by |", "| --- | --- | --- |", *rows]) + "\n"


def _found(path: Path) -> str:
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        return f"a folder with {', '.join(names[:6]) or 'nothing'}{' ...' if len(names) > 6 else ''}"
    return "a file" if path.exists() else "no such folder"


def _expected() -> str:
    """Describe the folders that are checkpoints, those with the same files together."""
    by_files: dict[tuple[str, ...], list[str]] = {}
    for layout in LAYOUTS:
        if layout.files:
            by_files.setdefault(layout.files, []).append(layout.description)
    return ", or ".join(f"{' and '.join(files)} ({_alternatives(names)})" for files, names in by_files.items())


def _alternatives(words: Sequence[str]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
