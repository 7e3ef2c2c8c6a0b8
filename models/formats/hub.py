"""Downloads checkpoints from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.registry import HUB_FILES

#: Owner and model; a relative path may begin with a dot, an id does not.
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(path_or_id: str) -> bool:
    """Decide whether an argument is the id of a checkpoint on the hub: it looks like one and no such path exists."""
    return _ID.fullmatch(path_or_id) is not None and not Path(path_or_id).exists()


def local_folder(path_or_id: str) -> Path:
    """Return the folder that a path or a hub id names; download a hub id that is not in the hub's cache.

    Raises:
        CheckpointError: there is no such folder, and the hub cannot provide it.
    """
    path = Path(path_or_id)
    if not is_hub_id(path_or_id):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{path_or_id}: no such folder; ids of the hub need the package huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # network, proxy, access and cache errors have no common base
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path_or_id}: no such folder, and the Hugging Face hub cannot provide it "
            f"({type(error).__name__}: {lines[0] if lines else 'no reason given'}); where there is no network, "
            f"download it elsewhere (hf download {path_or_id}) and pass the folder"
        ) from error
