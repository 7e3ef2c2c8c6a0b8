"""Compares what would be allocated with the memory of the machine, before it is allocated."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

#: Where Linux has the limit of the container or control group: version 2, then 1.
_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def physical_memory() -> int | None:
    """Return the bytes of main memory, or of what the container may use of it; None where nothing reports it."""
    sizes = []
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(path.read_text(encoding="ascii")))
    return min((size for size in sizes if size > 0), default=None)


def host_memory() -> int | None:
    """Return the bytes of main memory and swap; None where the system does not report them.

    What is free at the moment does not matter: caches of files make room, and buffers take it as a text grows.
    """
    memory = physical_memory()
    return None if memory is None else memory + _swap()


def _swap() -> int:
    """Return the bytes of swap; 0 where the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def check_memory(size: int, where: object, what: str, error: type[Exception]) -> None:
    """Refuse to allocate what no memory can hold.

    Args:
        size: to allocate, in bytes.
        where: file or folder that asks for it, for the message.
        what: is allocated, for the message: "weights in fp32".
        error: class of the error to raise.

    Raises:
        error: it is larger than main memory and swap.
    """
    memory = host_memory()
    if memory is not None and size > memory:
        raise error(
            f"{where}: found {size / 1e9:,.1f} GB of {what}, "
            f"expected at most the machine's memory, {memory / 1e9:,.1f} GB"
        )
