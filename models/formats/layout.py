"""Defines what a checkpoint layout is.

A layout is one module of this folder whose class implements `Layout` (`WritableLayout` if checkpoints can be written
in it too), and one line of `fastblt.models.formats.registry`. Importing the module and recognizing a folder must not
import PyTorch, so that the command line can check its arguments first: methods that need it import it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fastblt.models.config import BltConfig
from fastblt.models.formats.names import Pieces

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint
    from fastblt.models.formats.separate_patcher import StoredPatcher

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
#: A folder with this file is a bundle that was exported from a checkpoint.
BUNDLE_FILE = "manifest.json"


class Layout(Protocol):
    """Reads checkpoints that are stored in one way."""

    @property
    def name(self) -> str:
        """Return the word that selects the layout, e.g. in ``convert --to``."""
        ...

    @property
    def description(self) -> str:
        """Return what messages call a checkpoint of this layout, e.g. ``Meta BLT hub folder``."""
        ...

    @property
    def title(self) -> str:
        """Return what tables of documentation call the layout (Markdown)."""
        ...

    @property
    def contents(self) -> str:
        """Return what a folder contains, for tables of documentation (Markdown)."""
        ...

    @property
    def recognized_by(self) -> str:
        """Return how the layout is distinguished from others, for tables of documentation (Markdown)."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that every such folder has, for error messages; empty if there is no folder."""
        ...

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Return the files one of which a folder with such weights has."""
        ...

    @property
    def hub_files(self) -> tuple[str, ...]:
        """Return patterns of the files to download from the Hugging Face hub."""
        ...

    @property
    def patcher_prefix(self) -> str | None:
        """Return the prefix of the patcher's tensors; None if they are stored apart from the model's."""
        ...

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Decide whether a checkpoint has this layout, without PyTorch.

        Args:
            path: folder or another name of a checkpoint; it may not exist.
            config: content of its ``config.json``; empty if it has none.

        Raises:
            ConfigError: the checkpoint has this layout, but names something that does not exist.
        """
        ...

    def open(self, path: Path, patcher: Path | None) -> Checkpoint:
        """Open a checkpoint of this layout; its tensors are not checked yet.

        Args:
            path: what `recognizes` accepted.
            patcher: a checkpoint of any layout whose patcher replaces this one's own.

        Raises:
            CheckpointError: files are missing or damaged, or there is no patcher although patches need one.
            ConfigError: the configuration is invalid, or describes something that this project does not compute.
        """
        ...

    def open_patcher(self, path: Path) -> StoredPatcher:
        """Open the patcher of a checkpoint of this layout, or a patcher's own folder.

        Raises:
            CheckpointError: there is no patcher, or files are missing or damaged.
            ConfigError: the configuration is invalid.
        """
        ...

    def pieces(self, config: BltConfig) -> Pieces:
        """Return the names of a model's tensors in this layout."""
        ...


@runtime_checkable
class WritableLayout(Layout, Protocol):
    """Reads and writes checkpoints: ``config.json`` and ``model.safetensors``."""

    def config_text(self, config: BltConfig, dtype: str) -> str:
        """Return the text of ``config.json``.

        Args:
            config: of the model.
            dtype: type of most weights, PyTorch's name (``float32``).

        Raises:
            CheckpointError: the layout cannot express this model.
        """
        ...

    def differences(self, config: BltConfig) -> list[str]:
        """Return one sentence per way in which the layout's own software computes something else than fastblt."""
        ...
