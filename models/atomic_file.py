"""Writes files atomically: under a temporary name that nobody can predict, then renamed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write that replaces ``path`` if the body succeeds; otherwise ``path`` stays as it was.

    The content is on the disk before the name is. What is no regular file (``/dev/stdout``, a pipe) is written to
    directly. A link stays; its target is replaced. Permissions are those of the file that is replaced, or what the
    umask leaves of 0666.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~current_umask()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.{os.getpid()}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(mode)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def current_umask() -> int:
    """Return the permissions that the process withholds from new files."""
    # There is no call that only reads it; Linux has it in /proc without a moment in which it is changed.
    with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
