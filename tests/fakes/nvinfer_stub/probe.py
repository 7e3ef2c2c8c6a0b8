"""Imports the real Python bindings of TensorRT from a folder, and reports what they have of a list of names.

Run in a process of its own: ``probe.py FOLDER``, with the names of classes and members (``IBuilderConfig.set_flag``) on
standard input, one a line. Prints JSON: the version, the names that are missing, and the arguments of each function, a
list for every overload.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any


def find(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def arguments(function: Any, name: str) -> list[list[str]]:
    """Names of the arguments of every overload, from the text that pybind11 writes; of ``__init__`` for a class."""
    text = (function.__init__ if isinstance(function, type) else function).__doc__ or ""
    last = "__init__" if isinstance(function, type) else name.rpartition(".")[2]
    return [re.findall(r", (\w+): ", found) for found in re.findall(rf"{last}\(self: [\w.]+(.*?)\) -> ", text)]


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import tensorrt_bindings

    found = {name: find(tensorrt_bindings, name) for name in sys.stdin.read().split()}
    report = {
        "version": tensorrt_bindings.__version__,
        "missing": sorted(name for name, value in found.items() if value is None),
        "arguments": {name: arguments(value, name) for name, value in found.items() if callable(value)},
    }
    print(json.dumps(report))


main()
