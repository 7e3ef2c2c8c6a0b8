"""Downloads checkpoints from the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.hub_id import HubId, is_hub_id, parse_hub_id
from fastblt.models.formats.registry import HUB_FILES


@dataclass(frozen=True)
class Located:
    """Holds where a checkpoint is on this machine."""

    folder: Path
    name: str
    """What to call it in messages: the path; an id of the hub with the commit that was downloaded."""


def locate(name: str) -> Located:
    """Return the folder that a path or an id of the hub names; download what is not in the hub's cache.

    Args:
        name: see `fastblt.models.formats.hub_id`.

    Raises:
        CheckpointError: the id is malformed, or the hub cannot provide it.
    """
    if not is_hub_id(name):
        return Located(Path(name), name)
    wanted = parse_hub_id(name)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{name}: ids of the hub need the package huggingface_hub") from error
    try:
        # The folder of a snapshot is named after its commit.
        folder = Path(snapshot_download(wanted.model, revision=wanted.revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # network, proxy, access and cache errors have no common base
        lines = str(error).strip().splitlines()
        revision = "" if wanted.revision is None else f" --revision {wanted.revision}"
        raise CheckpointError(
            f"{name}: the Hugging Face hub cannot provide it "
            f"({type(error).__name__}: {lines[0] if lines else 'no reason given'}); where there is no network, "
            f"download it elsewhere (hf download {wanted.model}{revision}) and pass the folder"
        ) from error
    return Located(folder, str(HubId(wanted.model, folder.name)))
