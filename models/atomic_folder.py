"""Writes folders atomically: under a temporary name, then renamed."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` if the body succeeds, and is deleted otherwise.

    Leftovers of a killed process are removed by the next one that writes to the same ``folder``. A link stays; its
    target is replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.{os.getpid()}.", suffix=".partial", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        old = new.with_suffix(".old")
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Clean up after a killed process; if it died between the two renames, its old folder comes back first."""
    for path in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*")):
        process = path.name.removeprefix(f".{folder.name}.").split(".")[0]
        if path.suffix not in (".partial", ".old") or not process.isdigit() or _is_alive(int(process)):
            continue
        if path.suffix == ".old" and not folder.exists():
            os.rename(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 does not probe there: leftovers stay
    if process == os.getpid():
        return False  # a container's processes often have the same number at each start
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
