"""Checks of arguments and target folders that cost nothing: they come before PyTorch is imported.

What is checked here is checked again where the work is done; these checks are for users, who would otherwise wait for
seconds to read about a typing error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from fastblt.commands.errors import UsageError, usage_errors
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.hub_id import is_hub_id, with_revision
from fastblt.models.formats.open import check_path
from fastblt.models.formats.random_weights import PREFIX
from fastblt.models.formats.registry import recognize
from fastblt.runtime.backends.registry import backend_entry
from fastblt.runtime.bundle import target
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, is_bundle
from fastblt.runtime.bundle.target import TargetError
from fastblt.runtime.methods.registry import parse_method


def check_checkpoint(name: str | None) -> None:
    """Check what can be known of a checkpoint without opening it; None and well-formed ids of the hub are fine.

    Raises:
        UsageError: the name is empty, or a malformed id.
        ConfigError: there is no such preset, or its config.json cannot be read.
        CheckpointError: no layout is recognized.
    """
    if name == "":
        raise UsageError("found an empty name, expected a checkpoint")
    if name is not None:
        with usage_errors() if is_hub_id(name) else nullcontext():
            check_path(name)


def pinned(name: str, revision: str | None) -> str:
    """Return a checkpoint's name with the revision that an option asks for.

    Raises:
        UsageError: see `with_revision`.
    """
    with usage_errors():
        return with_revision(name, revision)


def check_bundle_or_checkpoint(name: str) -> None:
    """Check what can be known of a bundle or a checkpoint without opening it; ids of the hub are fine.

    Raises:
        UsageError: the name is empty, or a malformed id.
        ConfigError: there is no such preset, or its config.json cannot be read.
        CheckpointError: it is neither.
    """
    if name and not is_hub_id(name) and is_bundle(Path(name)):
        return
    try:
        check_checkpoint(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or a bundle: {MANIFEST_FILE}") from None


def check_bundle(bundle: Path, *, backend: str = "") -> None:
    """Check that a folder is a bundle, and point to ``fastblt export`` where it is a checkpoint.

    Args:
        bundle: the user's argument.
        backend: what is to run it; some run checkpoints, too.

    Raises:
        BundleError: it is something else.
    """
    if (bundle / MANIFEST_FILE).is_file():
        return
    hub_id = str(bundle).replace(os.sep, "/").replace(":/", "://", 1)  # a path has no two slashes in a row
    if is_hub_id(hub_id):
        raise BundleError(
            f"{hub_id}: found an id of the hub, expected a bundle; export the checkpoint first: "
            f"fastblt export {hub_id} BUNDLE"
        )
    if not is_checkpoint(bundle):
        raise BundleError(f"{bundle}: found {_what(bundle)}, expected a bundle (`fastblt export` writes one)")
    if not (backend and backend_entry(backend).reads_checkpoints and bundle.is_dir()):
        name = Path(str(bundle).removeprefix(PREFIX)).name
        raise BundleError(
            f"{bundle}: found a checkpoint, expected a bundle; export it first: fastblt export {bundle} {name}-bundle"
        )


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path is a checkpoint that can be exported."""
    try:
        recognize(path)
    except ValueError:
        return False
    return True


def _what(path: Path) -> str:
    if not path.exists():
        return "no such folder"
    return f"a folder without {MANIFEST_FILE}" if path.is_dir() else "a file"


def check_bundle_target(folder: Path, *, force: bool) -> None:
    """Check that a bundle can be written to a folder.

    Raises:
        TargetError: something is there that must not be replaced, or nothing can be written there.
    """
    target.check_bundle_target(folder, force=force)
    _check_parent(folder)


def check_new_folder(folder: Path) -> None:
    """Check that a folder is new or empty and can be made.

    Raises:
        TargetError: it has content, is a file, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TargetError(f"{folder}: found something there, expected a new name or an empty folder")
    _check_parent(folder)


def check_file_target(path: Path | None) -> None:
    """Check that a file can be written; None is fine.

    Raises:
        TargetError: it is a folder, or its folder is a bundle or cannot be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise TargetError(f"{path}: found a folder, expected the name of a file to write")
    if path.exists() and not path.is_file():
        # A pipe or a device is written to, whatever its folder is.
        if not os.access(path, os.W_OK):
            raise TargetError(f"{path}: found that it cannot be written to, expected one that can")
        return
    _check_parent(path)


def check_output_folder(folder: Path | None) -> None:
    """Check that files can be written into a folder, which need not exist; None is fine.

    Raises:
        TargetError: it is a file or a bundle, or cannot be written to.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"{folder}: found a file, expected a folder to write to")
    _check_parent(folder / "file")


def _check_parent(path: Path) -> None:
    """Check that the nearest folder above a path that exists can be written to, and that the path is in no bundle."""
    target = Path(os.path.realpath(path))  # links stay, what they point to is replaced
    if is_bundle(target.parent):
        raise TargetError(
            f"{path}: found a bundle as its folder, expected another: a bundle with files that its manifest does not "
            "list counts as damaged"
        )
    parent = next(each for each in target.parents if each.exists())
    if not parent.is_dir():
        raise TargetError(f"{path}: found the file {parent} above it, expected a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise TargetError(f"{path}: found that {parent} cannot be written to, expected a folder that can")


def check_backend(name: str | None) -> None:
    """Check that a backend exists; None is fine.

    Raises:
        UsageError: it does not; the message lists those that do.
    """
    if name is not None:
        with usage_errors():
            backend_entry(name)


def check_methods(names: Sequence[str] | None) -> None:
    """Check that methods exist, and that there are any; None is fine.

    Raises:
        UsageError: one of them does not; the message lists those that do.
    """
    if names is not None and not names:
        raise UsageError("methods: found none, expected at least one")
    with usage_errors():
        for name in names or ():
            parse_method(name)
