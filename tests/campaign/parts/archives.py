"""Unpacks archives whose members, headers, sums and compression were changed; nothing outside may change."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import random
import shutil
from pathlib import Path
from typing import Any

from campaign.changes import raw_file
from campaign.changes.tar_members import Member, tar_bytes
from campaign.fixtures import BUNDLE
from campaign.judge import Judge
from campaign.part import Counts, Place, Recipe
from campaign.recipes import MakesRecipes

from fastblt.runtime.bundle.unpacking import unpack

_NAMES = (
    *("../escaped", "/tmp/campaign-escaped", "a/../../escaped", "./config.json", "a//b", "a/./b", "", ".", "..", "a/"),
    *("\\", "C:\\x", "con", "a\nb", "\x1b[31m", "é", "manifest.json", "manifest.json/x", "SHA256SUMS"),
    *(
        "SHA256SUMS.sig",
        "x" * 300,
        "d/" * 60 + "x",
        "MANIFEST.JSON",
        "engines/a/engines.json",
        "engines/x/../../../escaped",
        " x",
    ),
)
#: Types of members: file, hard link, symbolic link, devices, folder, FIFO, GNU and pax extensions, sparse, unknown.
_TYPES = ("0", "\0", "1", "2", "3", "4", "5", "6", "7", "L", "K", "x", "g", "S", "Z")
_SIZES = (0, 1, 511, 512, 513, 10**6, 8**11 - 1, 2**40, 2**63, -1, -512)
_TARGETS = ("../../etc/passwd", "/etc/passwd", "..", ".", "config.json", "../jail/canary", "self")
_PAX = (
    "30 mtime=1e400\n",
    "19 path=../escaped\n",
    "999999999999 path=x\n",
    "-5 path=x\n",
    "0 path=x\n",
    "20 size=99999999999\n",
    "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n30 GNU.sparse.realsize=1099511\n",
    "path",
    "11 size=-10\n",
    "18 linkpath=/etc\n",
    "x" * 1000,
)  # fmt: skip


class Archives(MakesRecipes):
    """Changes an archive of a bundle."""

    name = "archives"
    summary = "changed members, headers, sums, links, sparse files and compression: unpack into a watched folder"

    def recipe(self, rng: random.Random, fixtures: Path) -> Recipe:
        """Choose up to three strange members and up to two changes of bytes."""
        strange = [self._member(rng, fixtures) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
        size = rng.choice((2_000, 60_000, 780_000))  # the first headers matter most
        changes = [raw_file.propose_bytes(rng, size) for _ in range(rng.choice((0, 0, 1, 2)) if strange else 1)]
        return {
            "members": strange,
            "at": rng.choice(("start", "end")),
            "changes": changes,
            "before": rng.random() < 0.5,
            "compression": rng.choice(("", "", ".gz", ".xz")),
            "sums": rng.choice(("right", "right", "right", "wrong", "none", "twice", "junk")),
        }

    def _member(self, rng: random.Random, fixtures: Path) -> dict[str, Any]:
        names = (*_NAMES, *(path.name for path in sorted((fixtures / BUNDLE).iterdir())))
        member: dict[str, Any] = {"name": rng.choice(names), "text": rng.choice(("", "x", "y" * 600))}
        if rng.random() < 0.6:
            member["type"] = rng.choice(_TYPES)
        if rng.random() < 0.3:
            member["size"] = rng.choice(_SIZES)
        if rng.random() < 0.3:
            member["link"] = rng.choice(_TARGETS)
        if rng.random() < 0.3:
            member["mode"] = rng.choice(("4777", "0", "7777", "-1", "zz"))
        if rng.random() < 0.1:
            member["fields"] = {rng.choice(("size", "mode", "mtime", "uid", "chksum")): rng.randbytes(8).hex()}
        if rng.random() < 0.25:
            member["pax"] = rng.choice(_PAX)
        if rng.random() < 0.03:
            member["times"] = rng.choice((100, 5000))
        return member

    def run(self, recipe: Recipe, place: Place) -> Counts:
        """Write the archive, unpack it, and look around."""
        jail = place.scratch / "jail"
        jail.mkdir()
        (jail / "canary").write_bytes(b"canary")
        archive = place.scratch / f"bundle.tar{recipe['compression']}"
        archive.write_bytes(archive_bytes(recipe, place.fixtures / BUNDLE))
        judge = Judge()
        names = judge.call(unpack, archive, jail / "out")
        found = {path.name for path in jail.iterdir()}
        if found - {"out"} != {"canary"} or (jail / "canary").read_bytes() != b"canary":
            judge.fail("lost files", f"unpacking has left or removed files beside the folder: {sorted(found)}")
        if {path.name for path in place.scratch.iterdir()} != {"jail", archive.name}:
            judge.fail("lost files", "unpacking has written two folders above")
        if Path("/tmp/campaign-escaped").exists():
            judge.fail("other", "unpacking has written to an absolute path")
        if names is None and (jail / "out").exists():
            judge.fail("lost files", "unpacking has failed and left a folder")
        for path in (jail / "out").rglob("*"):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                judge.fail("other", "unpacking has made something that is no file")
        shutil.rmtree(jail, ignore_errors=True)
        return judge.result()


def archive_bytes(recipe: Recipe, bundle: Path) -> bytes:
    """Return the archive that a recipe describes."""
    plain = [Member(path.name, path.read_bytes()) for path in sorted(bundle.iterdir())]
    strange = [Member.of(each) for each in recipe["members"]]
    members = [*strange, *plain] if recipe["at"] == "start" else [*plain, *strange]
    lines = [f"{hashlib.sha256(each.data).hexdigest()}  {each.name}\n" for each in members]
    text = "".join(dict.fromkeys(lines)).encode(errors="surrogateescape")
    sums = {
        "right": [text],
        "wrong": [text.replace(b"a", b"b")],
        "none": [],
        "twice": [text, text],
        "junk": [b"\xff\xfe\x00 junk\n\n  \n" + text],
    }[recipe["sums"]]
    data = tar_bytes([*members, *(Member("SHA256SUMS", each) for each in sums)])
    compress = {"": bytes, ".gz": lambda raw: gzip.compress(raw, 1), ".xz": lambda raw: lzma.compress(raw, preset=0)}
    if recipe["before"]:
        data = _changed(data, recipe["changes"])
    data = compress[recipe["compression"]](data)
    return data if recipe["before"] else _changed(data, recipe["changes"])


def _changed(data: bytes, changes: list[dict[str, Any]]) -> bytes:
    for change in changes:
        data = raw_file.changed_bytes(data, change)
    return data
