"""Opens a bundle: its manifest, its configuration, and the paths of its files, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.contract import activation_type, check_manifest, table_shapes
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    BundleError,
    Manifest,
    check_file,
    check_own_file,
    check_size,
    load_manifest,
)
from fastblt.runtime.bundle.tables import check_values, map_tables


@dataclass(frozen=True)
class Bundle:
    """Holds what is known of a bundle on disk; `open` is the constructor for users."""

    path: Path
    manifest: Manifest
    config: BltConfig

    @classmethod
    def open(cls, path: str | Path, *, check: bool = True) -> Bundle:
        """Read a bundle's manifest and configuration, and compare one with the other.

        Every graph's inputs and outputs in the manifest are those that the configuration requires, see
        `fastblt.runtime.bundle.contract`.

        Args:
            path: folder that ``fastblt export`` or ``fastblt quantize`` wrote.
            check: also compare size and sha256 of every file, and the header of the embedding tables; False: read the
                two JSON files only.

        Raises:
            BundleError: there is no manifest, a file is missing or damaged, or manifest and configuration disagree.
            ConfigError: the configuration is missing or invalid.
        """
        folder = Path(path)
        manifest = load_manifest(folder)
        if check:
            _check_files(folder, manifest, digests=True)
        elif os.path.lexists(folder / CONFIG_FILE):
            check_own_file(folder / CONFIG_FILE)
        config = BltConfig.load(folder / CONFIG_FILE)
        check_manifest(folder / MANIFEST_FILE, manifest, config)
        opened = cls(folder, manifest, config)
        if check:
            opened.check_tables()
        return opened

    def check_sizes(self) -> None:
        """Compare the size of every file with the manifest, and the header of the embedding tables.

        Raises:
            BundleError: a file is missing, unknown, of another size, or links to something outside of the bundle.
        """
        _check_files(self.path, self.manifest, digests=False)
        self.check_tables()

    def check_files(self) -> None:
        """Compare every file with the manifest, and the header of the embedding tables.

        Raises:
            BundleError: as `check_sizes`, or a file has another sha256.
        """
        _check_files(self.path, self.manifest, digests=True)
        self.check_tables()

    def check_tables(self) -> None:
        """Compare names, types, shapes and ranges of the embedding tables on the host with the configuration.

        Raises:
            BundleError: they differ.
        """
        self.tables()

    def tables(self) -> dict[str, NDArray[Any]]:
        """Map the embedding tables on the host into memory, [rows, width] by tensor; none if they are in a graph.

        Raises:
            BundleError: the file is not what the configuration requires.
        """
        if self.embeddings is None:
            return {}
        return map_tables(self.embeddings, table_shapes(self.config.hash, self.config.encoder.dim))

    def check_values(self) -> None:
        """Check that no value of the embedding tables on the host is NaN or infinite; it reads all of them.

        Raises:
            BundleError: one is.
        """
        if self.embeddings is not None:
            check_values(self.embeddings, table_shapes(self.config.hash, self.config.encoder.dim))

    def graph(self, part: str) -> Path:
        """Return the path of a part's graph: ``patcher``, ``encoder``, ``global``, ``decoder`` or ``draft``."""
        return self.path / self.manifest.graphs[part].file

    @property
    def graph_bytes(self) -> int:
        """Return the bytes of all graphs and of their weights and tables beside them: what a GPU has to hold."""
        graphs = {name for spec in self.manifest.graphs.values() for name in (spec.file, f"{spec.file}.data")}
        return sum(entry["bytes"] for name, entry in self.manifest.files.items() if name in graphs)

    @property
    def activations(self) -> str:
        """Return the tensor type of activations and caches, the patcher's excepted, e.g. ``float16``."""
        return activation_type(self.manifest)

    @property
    def embeddings(self) -> Path | None:
        """Return the path of the embedding tables on the host; None where they are inside the encoder's graph."""
        return self.path / EMBEDDINGS_FILE if self.manifest.hash_tables == "host" else None


def _check_files(folder: Path, manifest: Manifest, *, digests: bool) -> None:
    present = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST_FILE}
    for name in sorted(present - set(manifest.files)):
        raise BundleError(f"{folder / name}: found a file that {MANIFEST_FILE} does not list")
    for name, entry in manifest.files.items():
        if digests:
            check_file(folder / name, entry["bytes"], entry["sha256"])
        else:
            check_size(folder / name, entry["bytes"])
