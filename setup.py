"""Refuses to build when the links in ``src/fastblt`` did not survive the checkout.

The four subpackages live at the top of the repository and are linked into ``src/fastblt``. Where links become
small text files (git on Windows without ``core.symlinks``, some archive tools), setuptools would
build a package without them and report nothing. Everything else is configured in ``pyproject.toml``.
"""

import os
from pathlib import Path

from setuptools import setup

SUBPACKAGES = ("calibration", "export", "models", "runtime")


def check_links(root: Path) -> None:
    """Stop the build unless each subpackage of ``root / "src/fastblt"`` is what it should be.

    In a checkout that is a link to the folder of the same name at the top; in a source distribution, which
    has no such folders at its top, it is the folder itself.

    Args:
        root: Folder that holds ``setup.py``.

    Raises:
        SystemExit: Naming each wrong path, what was found there and what was expected.
    """
    problems = []
    for name in SUBPACKAGES:
        path, target = root / "src" / "fastblt" / name, root / name
        expected = f"a symbolic link to {os.path.join('..', '..', name)}"
        if path.is_symlink():
            if path.resolve() != target.resolve() or not path.is_dir():
                problems.append(f"{path}: found a link to {os.readlink(path)}, expected {expected}")
        elif path.is_file():
            problems.append(f"{path}: found a text file, expected {expected}")
        elif not path.is_dir():
            problems.append(f"{path}: found nothing, expected {expected}")
        elif target.exists():
            problems.append(f"{path}: found a copy of the folder, expected {expected}")
    if problems:
        raise SystemExit(
            "fastblt cannot be built from this checkout, its symbolic links are broken:\n  "
            + "\n  ".join(problems)
            + "\nClone again with links enabled (git clone -c core.symlinks=true; on Windows also turn on"
            " developer mode), or restore them with: git checkout -- src/fastblt"
        )


check_links(Path(__file__).resolve().parent)
setup()
