"""Opens a bundle: its manifest, its configuration, and the paths of its files, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    BundleError,
    Manifest,
    check_file,
    load_manifest,
)


@dataclass(frozen=True)
class Bundle:
    """Holds what is known of a bundle on disk; `open` is the constructor for users."""

    path: Path
    manifest: Manifest
    config: BltConfig

    @classmethod
    def open(cls, path: str | Path, *, check: bool = True) -> Bundle:
        """Read a bundle's manifest and configuration, and compare its files with the manifest.

        Args:
            path: folder that ``fastblt export`` or ``fastblt quantize`` wrote.
            check: compare size and sha256 of every file; False: read the two JSON files only.

        Raises:
            BundleError: there is no manifest, a file is missing or damaged, or manifest and configuration disagree.
            ConfigError: the configuration is missing or invalid.
        """
        folder = Path(path)
        manifest = load_manifest(folder)
        if check:
            _check_files(folder, manifest)
        config = BltConfig.load(folder / CONFIG_FILE)
        if set(manifest.graphs) != set(config.stacks):
            found, expected = (", ".join(sorted(parts)) for parts in (manifest.graphs, config.stacks))
            raise BundleError(f"{folder / MANIFEST_FILE}: found graphs {found}, expected {expected} ({CONFIG_FILE})")
        return cls(folder, manifest, config)

    def check_files(self) -> None:
        """Compare every file with the manifest.

        Raises:
            BundleError: a file is missing, unknown, or differs in size or sha256.
        """
        _check_files(self.path, self.manifest)

    def graph(self, part: str) -> Path:
        """Return the path of a part's graph: ``patcher``, ``encoder``, ``global`` or ``decoder``."""
        return self.path / self.manifest.graphs[part].file

    @property
    def embeddings(self) -> Path | None:
        """Return the path of the embedding tables on the host; None where they are inside the encoder's graph."""
        return self.path / EMBEDDINGS_FILE if self.manifest.hash_tables == "host" else None


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST_FILE}
    for name in sorted(present - set(manifest.files)):
        raise BundleError(f"{folder / name}: found a file that {MANIFEST_FILE} does not list")
    for name, entry in manifest.files.items():
        check_file(folder / name, entry["bytes"], entry["sha256"])
