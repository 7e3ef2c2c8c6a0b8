"""Recognizes ids of checkpoints on the Hugging Face hub; everything else is a path.

An id is ``hf://OWNER/MODEL`` or, at a commit, tag or branch, ``hf://OWNER/MODEL@REVISION``, as huggingface_hub writes
them. ``OWNER/MODEL`` alone is a path: a mistyped one must not fetch a stranger's model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastblt.models.formats.errors import CheckpointError
from fastblt.models.shown import shown

PREFIX = "hf://"
SYNTAX = f"{PREFIX}OWNER/MODEL"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ID = re.compile(rf"{PREFIX}(?P<model>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_BARE = re.compile(rf"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class HubId:
    """Holds the parts of an id."""

    model: str
    """``OWNER/MODEL``."""
    revision: str | None
    """Commit, tag or branch; None: the newest of the main branch."""

    def __str__(self) -> str:
        """Return the id as the user writes it."""
        return f"{PREFIX}{self.model}{'' if self.revision is None else f'@{self.revision}'}"


def is_hub_id(name: str) -> bool:
    """Decide whether an argument means a checkpoint on the hub rather than a path."""
    return name.startswith(PREFIX)


def parse_hub_id(name: str) -> HubId:
    """Return the parts of an id.

    Raises:
        CheckpointError: it is malformed.
    """
    found = _ID.fullmatch(name)
    if found is None:
        raise CheckpointError(f"hub id: found {shown(name)}, expected {SYNTAX} or {SYNTAX}@REVISION")
    return HubId(found["model"], found["revision"])


def with_revision(name: str, revision: str | None) -> str:
    """Return a checkpoint's name with the revision that an option asks for.

    Args:
        name: an id or a path.
        revision: commit, tag or branch; None returns ``name``.

    Raises:
        CheckpointError: it is a path, or an id with another revision, or either is malformed.
    """
    if revision is None:
        return name
    if not is_hub_id(name):
        raise CheckpointError(f"--revision: found the path {name}, expected an id of the hub, {SYNTAX}")
    parts = parse_hub_id(name)
    if parts.revision not in (None, revision):
        raise CheckpointError(f"--revision: found {shown(revision)} for {name}, expected one revision")
    pinned = f"{PREFIX}{parts.model}@{revision}"
    parse_hub_id(pinned)
    return pinned


def hub_hint(path: str) -> str:
    """Return what to add to the message that there is no such folder: how to write an id, if it looks like one."""
    return f"; a model of the Hugging Face hub is {PREFIX}{path}" if _BARE.fullmatch(path) else ""
