"""Changes ``.pth`` files: members of the zip archive, and the pickle in it."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

from campaign.changes import raw_file

Change = dict[str, Any]

#: Folder that a pickle makes in the current folder, should it ever run code.
RAN = "campaign-ran"
_HOSTILE = {
    "calls mkdir": f"cos\nmkdir\n(S'{RAN}'\ntR.".encode(),
    "calls eval": f'c__builtin__\neval\n(S\'__import__("os").mkdir("{RAN}")\'\ntR.'.encode(),
    "builds an object": f"(ios\nmkdir\nS'{RAN}'\n.".encode(),
    "by name of torch": f"ctorch.serialization\nos.mkdir\n(S'{RAN}'\ntR.".encode(),
    "by getattr": b"c__builtin__\ngetattr\n(cos\nsystem\nS'x'\ntR.",
    "huge string": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "huge memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "deep lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "many marks": b"(" * 200_000 + b".",
    "unknown extension": b"\x80\x02\x82\x01.",
    "no stop": b"\x80\x02}",
    "stack underflow": b"\x80\x020.",
    "an integer": pickle.dumps(5, protocol=2),
    "a list": pickle.dumps([1], protocol=2),
    "names that are numbers": pickle.dumps({"model": {1: 2}}, protocol=2),
    "itself": b"\x80\x02}q\x00U\x05modelh\x00s.",
}


def propose(rng: random.Random, path: Path) -> Change:
    """Return a change of a file."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    pickled = next(name for name in names if name.endswith("data.pkl"))
    kind = rng.random()
    if kind < 0.3:
        return {"op": "pth pickle", "member": pickled, "kind": rng.choice(tuple(_HOSTILE))}
    member = pickled if kind < 0.8 else rng.choice(names)
    with zipfile.ZipFile(path) as file:
        size = len(file.read(member))
    return {"op": "pth member", "member": member, "change": raw_file.propose_bytes(rng, size)}


def apply(path: Path, change: Change) -> None:
    """Change the file at ``path``; what is no zip archive stays unchanged."""
    try:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return
    name = change["member"]
    if name not in members:
        return
    if change["op"] == "pth pickle":
        members[name] = _HOSTILE[change["kind"]]
    else:
        members[name] = raw_file.changed_bytes(members[name], change["change"])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
