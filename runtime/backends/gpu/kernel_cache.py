"""Keeps the kernels that TensorRT-RTX compiles on the user's machine in a file, from one start to the next.

The code in an engine of TensorRT-RTX is compiled to the end on the GPU that it runs on. The first time, that takes
seconds for each shape; engines of TensorRT need none of it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastblt.models.atomic_file import write_file
from fastblt.runtime.machine import cache_folder

logger = logging.getLogger(__name__)


def cache_file(version: str, sm: int, engine_sha256: str) -> Path:
    """Return the file that keeps the kernels of an engine.

    Args:
        version: of TensorRT-RTX.
        sm: compute capability of the GPU, e.g. 89.
        engine_sha256: of the engine's file.
    """
    return cache_folder() / "tensorrt-rtx" / f"{version}-sm{sm}-{engine_sha256[:16]}.kernels"


class KernelCache:
    """Holds the kernels of one engine.

    Args:
        path: file that keeps them; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._kept = 0

    def attach(self, config: Any) -> None:
        """Use the cache in a runtime configuration of the engine; the first call reads the file."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path.is_file() and not self._cache.deserialize(self._path.read_bytes()):
                logger.info("%s: refused by TensorRT-RTX, kernels will be compiled again", self._path)
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write the file if there are new kernels; a folder that cannot be written to is not an error."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        if len(data) == self._kept:
            return
        try:
            write_file(self._path, data)
            self._kept = len(data)
        except OSError as error:
            logger.info("%s: cannot be written (%s), kernels will be compiled again", self._path, error)
