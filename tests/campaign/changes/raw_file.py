"""Changes files as bytes, and puts something else in their place."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

Change = dict[str, Any]

_KINDS = ("flip", "flip", "write", "write", "insert", "cut", "truncate", "extend", "zero", "copy within")
_REPLACEMENTS = ("delete", "empty", "fifo", "folder", "link to nothing", "link to zero", "link to itself", "link out")


def propose(rng: random.Random, path: Path, *, replace: bool = True) -> Change:
    """Return a change of a file's bytes, or sometimes of what is in its place."""
    if replace and rng.random() < 0.15:
        return {"op": rng.choice(_REPLACEMENTS)}
    return propose_bytes(rng, path.stat().st_size)


def propose_bytes(rng: random.Random, size: int) -> Change:
    """Return a change of bytes, given their number."""
    size = max(size, 1)
    # Headers and footers matter most.
    at = rng.choice((rng.randrange(size), rng.randrange(min(size, 64)), rng.randrange(max(size - 64, 0), size)))
    kind = rng.choice(_KINDS)
    change: Change = {"op": f"bytes {kind}", "at": at}
    if kind == "flip":
        change["bit"] = rng.randrange(8)
    elif kind in ("write", "insert"):
        choices = ("00", "ff", "7f", "80", "ffffffff", "ffffffffffffff7f", "0000000000000080", "22", "7b", "5b", "0a")
        change["hex"] = rng.choice((*choices, rng.randbytes(rng.randrange(1, 9)).hex()))
    elif kind in ("cut", "extend", "zero", "copy within"):
        change["count"] = rng.choice((1, 8, 64, 512, 4096))
        change["from"] = rng.randrange(size)
    return change


def apply(path: Path, change: Change) -> None:
    """Change the file at ``path``."""
    op = change["op"]
    if not op.startswith("bytes "):
        _replace(path, op)
    elif path.is_file():
        path.write_bytes(changed_bytes(path.read_bytes(), change))


def changed_bytes(data: bytes, change: Change) -> bytes:
    """Return bytes after a change."""
    at = min(change["at"], len(data))
    count = change.get("count", 0)
    match change["op"].removeprefix("bytes "):
        case "flip":
            return data[:at] + bytes(byte ^ 1 << change["bit"] for byte in data[at : at + 1]) + data[at + 1 :]
        case "write":
            new = bytes.fromhex(change["hex"])
            return data[:at] + new + data[at + len(new) :]
        case "insert":
            return data[:at] + bytes.fromhex(change["hex"]) + data[at:]
        case "cut":
            return data[:at] + data[at + count :]
        case "truncate":
            return data[:at]
        case "extend":
            return data + bytes(count)
        case "zero":
            return data[:at] + bytes(len(data[at : at + count])) + data[at + count :]
        case "copy within":
            piece = data[change["from"] : change["from"] + count]
            return data[:at] + piece + data[at + len(piece) :]
        case other:
            raise ValueError(f"op: found {other!r}")


def _replace(path: Path, op: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match op:
        case "delete":
            pass
        case "empty":
            path.write_bytes(b"")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link to nothing":
            path.symlink_to("nothing-there")
        case "link to zero":
            path.symlink_to("/dev/zero")
        case "link to itself":
            path.symlink_to(path.name)
        case "link out":
            path.symlink_to("/etc/passwd")
        case other:
            raise ValueError(f"op: found {other!r}")
