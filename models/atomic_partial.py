"""Makes what is not finished yet: a hidden file or folder beside its target, locked by the process that writes it.

Nobody can predict its name, and put a link there. The lock (flock) ends with the process, however that ends: what
has the name of a partial and no lock is what a killed process left, and the next one that writes to the same target
removes it. A number of a process would not do: it is reused, and another container has its own. Where there are no
such locks (Windows, some network file systems), leftovers stay.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import fcntl

#: Ends of names: what is being written; what a folder was renamed to while its successor takes its name.
PARTIAL, OLD = ".partial", ".old"


@dataclass
class Partial:
    """Holds a file or folder that is being written."""

    path: Path
    descriptor: int
    """Open for writing for a file, for reading for a folder; -1 where folders cannot be opened (Windows). It holds
    the lock."""

    def close(self) -> None:
        """Close the descriptor, and release the lock."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


@contextmanager
def partial(target: Path, *, folder: bool) -> Iterator[Partial]:
    """Yield a new file or folder beside ``target``, and delete it in the end if it is still there.

    What killed processes left of the same target is removed first.

    Args:
        target: what it will be renamed to; its folder must exist.
        folder: whether to make a folder.

    Raises:
        OSError: it cannot be made; the error names ``target``.
    """
    remove_leftovers(target)
    # A signal may raise between any two instructions, also when something has just been made and nobody holds it yet:
    # names are chosen and kept before anything has them.
    names: list[Path] = []
    new: Partial | None = None
    try:
        try:
            new = _make_locked(target, names, folder=folder)
            with named_errors(new.path, target):
                yield new
        finally:
            _remove_all(names)
    finally:
        # Again, for what a signal that raised meanwhile has kept from being deleted; a second one ends the process.
        _remove_all(names)
        if new is not None:
            with suppress(OSError):
                new.close()


@contextmanager
def named_errors(path: Path, target: Path) -> Iterator[None]:
    """Let errors of a file that is being written, or of no file in particular, name what it will be."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        found = error.filename
        name = str(target) if found is None or isinstance(found, int) else os.fsdecode(found)
        name = name.replace(str(path), str(target), 1)
        raise OSError(error.errno, error.strerror, name) from error


def remove_leftovers(target: Path) -> None:
    """Delete what killed processes of this user left of ``target``.

    If one died between the two renames that replace a folder, its old folder comes back first.
    """
    name = re.compile(re.escape(_prefix(target)) + rf"[a-z0-9_]+(\{PARTIAL}|\{OLD})")
    try:
        with os.scandir(target.parent) as entries:
            found = sorted(Path(entry.path) for entry in entries if name.fullmatch(entry.name))
    except OSError:
        return
    for path in found:
        # A folder that was put aside is as alive as its successor.
        successor = path.with_suffix(PARTIAL)
        locked = successor if successor in found else path
        try:
            descriptor = _open(locked)
        except OSError:
            continue
        try:
            if _lock(descriptor, locked) and _is_ours(descriptor):
                if path.suffix == OLD and not target.exists():
                    os.rename(path, target)
                else:
                    remove(path)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there and can be deleted."""
    handled = sys.exc_info()[1]
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError as error:
        # Python 3.11 closes the folder a second time if a signal raises just after the first, and that fails.
        # What the caller is handling is a context, too: that is raised again when its clean-up is done.
        interrupt = error.__context__
        if isinstance(interrupt, KeyboardInterrupt) and interrupt is not handled:
            raise interrupt from None


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        remove(path)


def _make_locked(target: Path, names: list[Path], *, folder: bool) -> Partial:
    """Make a file or folder whose lock this process has; its name, and others that were tried, go to ``names``."""
    while True:
        path = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}{PARTIAL}")
        names.append(path)
        with named_errors(path, target):
            new = _make(path, folder=folder)
        try:
            # Until the lock is there, another process may take it for a leftover.
            if _lock(new.descriptor, new.path):
                return new
        except OSError:
            return new
        remove(new.path)
        new.close()


def _make(path: Path, *, folder: bool) -> Partial:
    if not folder:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return Partial(path, os.open(path, flags, 0o600))
    path.mkdir(0o700)
    return Partial(path, -1 if sys.platform == "win32" else _open(path))


def _open(path: Path) -> int:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags)


def _lock(descriptor: int, path: Path) -> bool:
    """Lock what is open; False: another process has locked it, or ``path`` is another file by now.

    Raises:
        OSError: there are no such locks here.
    """
    if sys.platform == "win32":
        raise OSError("no locks")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _is_ours(descriptor: int) -> bool:
    """Return whether this user made it: in a folder that others write to, too, their leftovers are theirs."""
    return sys.platform == "win32" or os.fstat(descriptor).st_uid == os.geteuid()


def _prefix(target: Path) -> str:
    # A name has at most 255 bytes, and the rest of it takes 30.
    return f".{os.fsencode(target.name)[:200].decode(errors='ignore')}.fastblt-"
