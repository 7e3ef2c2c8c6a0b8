"""Writes folders atomically: under a temporary name that nobody can predict, then renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastblt.models.atomic_file import current_umask, sync
from fastblt.models.atomic_partial import OLD, PARTIAL, partial, remove


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` if the body succeeds, and is deleted otherwise.

    The content is on the disk before the name is. What killed processes left of the same ``folder`` is removed. A
    link stays; its target is replaced. Permissions are those of the folder that is replaced, or what the umask leaves
    of 0777.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial(folder, folder=True) as new:
        # Found here, after a folder that a killed process had put aside came back.
        found = folder.stat() if folder.exists() else None
        if found is not None and not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        yield new.path
        _sync_content(new.path)
        new.path.chmod(0o777 & ~current_umask() if found is None else found.st_mode & 0o777)
        _take_name(new.path, folder)
        sync(folder.parent)


@contextmanager
def scratch_folder(target: Path | None = None) -> Iterator[Path]:
    """Yield a new folder for intermediate files, and delete it in the end.

    Args:
        target: what they are needed for: the folder is made beside it, and what killed processes left there is
            removed. None: below the system's folder for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    target = Path(tempfile.gettempdir()) / "scratch" if target is None else target
    target.parent.mkdir(parents=True, exist_ok=True)
    with partial(target, folder=True) as new:
        yield new.path


def _take_name(new: Path, folder: Path) -> None:
    """Rename a folder to one that may exist; in one step, or if that is impossible, in two that can be undone."""
    if not folder.exists():
        os.rename(new, folder)
        return
    if _exchange(new, folder):
        return
    old = new.with_name(new.name.removesuffix(PARTIAL) + OLD)
    try:
        os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:  # signals included, which come between any two steps
        if not folder.exists():
            os.rename(old, folder)
        raise
    remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False: this system, or this file system, cannot."""
    at_working_folder, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2  # Linux; Python has no name for it
    except (OSError, AttributeError, TypeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(at_working_folder, names[0], at_working_folder, names[1], exchange) == 0)


def _sync_content(folder: Path) -> None:
    """Return when every file in a folder is on the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent) / name
            if stat.S_ISREG(path.lstat().st_mode):
                sync(path)
        sync(Path(parent))
