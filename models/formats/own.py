"""Reads and writes this project's own layout: ``config.json`` (`BltConfig`) and ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastblt.models.config import BltConfig
from fastblt.models.formats.layout import BUNDLE_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from fastblt.models.formats.names import PATCHER_PREFIX, Pieces

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint
    from fastblt.models.formats.separate_patcher import StoredPatcher


class FastbltLayout:
    """Reads and writes the folders of `fastblt.models.checkpoint.save_checkpoint`, patcher included."""

    name = "fastblt"
    description = "fastblt checkpoint"
    title = "fastblt"
    contents = f"`{CONFIG_FILE}`, `{WEIGHTS_FILE}`"
    recognized_by = f"our fields in `{CONFIG_FILE}`"
    files = (CONFIG_FILE, WEIGHTS_FILE)
    weight_files = (WEIGHTS_FILE, INDEX_FILE)
    hub_files = ("*.json", "*.safetensors")
    patcher_prefix = PATCHER_PREFIX

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Implement `Layout.recognizes`: accept any ``config.json`` that no other layout has recognized.

        Reading it as ours then names the first field that does not fit.
        """
        return (path / CONFIG_FILE).is_file() and not (path / BUNDLE_FILE).is_file()

    def open(self, path: Path, patcher: Path | None) -> Checkpoint:
        """Implement `Layout.open`."""
        from fastblt.models.formats.checkpoint import Checkpoint
        from fastblt.models.formats.separate_patcher import with_patcher
        from fastblt.models.formats.stores import open_safetensors

        config = BltConfig.load(path / CONFIG_FILE)
        main = Checkpoint(self, path, config, open_safetensors(path), self.pieces(config))
        return with_patcher(main, patcher)

    def open_patcher(self, path: Path) -> StoredPatcher:
        """Implement `Layout.open_patcher`."""
        from fastblt.models.formats.separate_patcher import patcher_of

        return patcher_of(self.open(path, None))

    def pieces(self, config: BltConfig) -> Pieces:
        """Implement `Layout.pieces`: every tensor has our name."""
        from fastblt.models.formats.checkpoint import identity_pieces

        return identity_pieces(config)

    def config_text(self, config: BltConfig, dtype: str) -> str:
        """Implement `WritableLayout.config_text`."""
        return config.to_json()

    def differences(self, config: BltConfig) -> list[str]:
        """Implement `WritableLayout.differences`: there are none."""
        return []
