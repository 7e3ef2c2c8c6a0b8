"""Writes files atomically: under a temporary name that nobody can predict, then renamed."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fastblt.models.atomic_partial import named_errors, partial


@contextmanager
def replacing_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write that replaces ``path`` if the body succeeds; otherwise ``path`` stays as it was.

    The content is on the disk before the name is. What is no regular file (a pipe, a device), and the file that the
    standard output goes to (``/dev/stdout``), is written to directly. A link stays; its target is replaced.
    Permissions are those of the file that is replaced, or what the umask leaves of 0666 (of 0600 where the content is
    ``private``). What killed processes left of the same file is removed.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    found = _status(path)
    output = standard_stream(path)
    if found is not None and (output is not None or not stat.S_ISREG(found.st_mode)):
        with named_errors(path, path), path.open("wb") if output is None else os.fdopen(os.dup(output), "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = 0o600 if private else 0o666
    mode = fresh & ~current_umask() if found is None else found.st_mode & 0o777
    with partial(target, folder=False) as new:
        # The lock belongs to the descriptor and must last until the file has its name.
        with os.fdopen(os.dup(new.descriptor), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.path.chmod(mode)
        if sys.platform == "win32":
            new.close()  # an open file cannot be renamed there
        os.replace(new.path, target)
        sync(target.parent)


def write_file(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write text (as UTF-8) or bytes to a file with `replacing_file`.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    with replacing_file(path, private=private) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written there.
    """
    if sys.platform == "win32":
        return  # folders cannot be opened there, and files only for writing
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def current_umask() -> int:
    """Return the permissions that the process withholds from new files."""
    # There is no call that only reads it; Linux has it in /proc without a moment in which it is changed.
    with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def standard_stream(path: Path) -> int | None:
    """Return the descriptor, standard output or error, that a file is open as; None: it is neither.

    Opened a second time, a file would be written from its beginning, over what was printed. Replaced, it would lose
    what is printed later.
    """
    found = _status(path)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError, ValueError):
            if found is not None and os.path.samestat(os.fstat(descriptor), found):
                if stream is not None:
                    stream.flush()
                return descriptor
    return None
