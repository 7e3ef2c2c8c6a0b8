"""Makes expensive files once per test run, however many processes run the tests.

Exports, engines and large checkpoints go to one folder that all workers of pytest-xdist see. Whoever asks for a file
first makes it, under a lock; the others wait and read. No test changes what it finds here: it copies first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class SharedFiles:
    """Holds files and folders by name; every process of a test run that opens the same root shares them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[Path, list[tuple[str, int, int]]] = {}
        for folder in (root, root / "locks", root / "partial"):
            folder.mkdir(exist_ok=True)

    def make(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return the file or folder ``name``; call ``write(path)`` first if no process has made it yet.

        What ``write`` leaves behind when it raises is removed, and the next one to ask tries again.
        """
        path, partial = self.root / name, self.root / "partial" / name
        if path in self._found:
            return path
        with FileLock(self.root / "locks" / name):
            if not path.exists():
                try:
                    write(partial)
                    partial.rename(path)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        self._found[path] = listing(path)
        return path

    def changed(self) -> list[Path]:
        """Return what is no longer as this process first found it: a test wrote where it should have copied."""
        return [path for path, found in self._found.items() if listing(path) != found]


def listing(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and time of change of every file of a folder, or of a single file."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def shared_root(temporary: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of this test run share: workers have one of their own in a common parent."""
    base = temporary.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
