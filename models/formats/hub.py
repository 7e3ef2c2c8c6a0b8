"""Checkpoints of the Hugging Face hub, by id."""

from __future__ import annotations

import re
from pathlib import Path

from fastblt.models.formats.errors import CheckpointError

#: Name and model; a relative path begins with a dot, an id does not.
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
#: Everything that a checkpoint of any layout consists of.
_FILES = ["*.json", "*.safetensors", "consolidated.pth", "entropy_model/*"]


def local_folder(path_or_id: str) -> Path:
    """The folder that a path or a hub id means; what is not on this machine is downloaded to the hub's cache.

    Raises:
        CheckpointError: there is no such folder, and the hub cannot give it.
    """
    path = Path(path_or_id)
    if path.exists() or not _ID.fullmatch(path_or_id):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{path_or_id}: no such folder; ids of the hub need the package huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=_FILES))
    except Exception as error:  # network, proxy, access and cache errors have no common base
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path_or_id}: no such folder, and the Hugging Face hub cannot give it "
            f"({type(error).__name__}: {lines[0] if lines else 'no reason given'}); where there is no network, "
            f"download it elsewhere (hf download {path_or_id}) and pass the folder"
        ) from error
