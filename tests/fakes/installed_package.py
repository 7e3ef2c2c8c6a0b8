"""Installs a package with entry points into a folder, as pip would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install_package(folder: Path, module: str, source: str, entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Write a module and the metadata of its package, version 1.0.

    Args:
        folder: to be put on ``sys.path``.
        module: name of the module; the package has the same.
        source: of the module.
        entry_points: by group, then by name.
    """
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in entry_points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
