"""Keeps what ``fastblt tune`` found for a bundle in a small file, which commands read their defaults from.

The files are in the user's settings folder and not in the bundle, whose manifest lists every file that it may have:
``profiles/NAME-PATH/BACKEND-PROVIDER.json``, PATH being a digest of the bundle's real path. A profile holds for one
machine and one content of the bundle, and is refused on any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.models.limits import FACTOR, THREADS
from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.runtime.bundle.json_entries import JsonEntries
from fastblt.runtime.bundle.manifest import is_bundle, load_manifest, read_digest
from fastblt.runtime.machine import machine_identity, settings_folder
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.methods import MethodError, parse_method

FORMAT, FORMAT_VERSION = "fastblt-profile", 1

#: Characters of the longest path that is read from a profile.
_PATH_CHARACTERS = 4096
#: Most GPUs of a machine, and bytes per second of any model.
_GPUS, _BYTES_PER_S = 64, 1e9
#: Hexadecimal digits of a bundle's real path in the name of a folder.
_DIGITS = 12


class ProfileError(ValueError):
    """Reports a profile that cannot be used: damaged, or of another machine or bundle."""


@dataclass(frozen=True)
class BundleKey:
    """Names a bundle and its content."""

    path: str
    """Real path of the folder."""
    manifest: str
    """`Manifest.digest`."""

    @classmethod
    def of(cls, bundle: Path) -> BundleKey:
        """Return the key of a bundle.

        Raises:
            BundleError: it is none.
        """
        return cls(os.path.realpath(bundle), load_manifest(bundle).digest)


@dataclass(frozen=True)
class Profile:
    """Holds the fastest settings of one bundle, on one machine, with one backend."""

    bundle: BundleKey
    """What was tuned."""
    backend: str
    provider: str
    """As the user asked for it, e.g. ``auto``."""
    method: str
    """E.g. ``s:6``."""
    threads: int | None
    """Of one operator; None on a GPU."""
    allow_lossy: bool
    """Whether methods and bundles that change the text were allowed."""
    bytes_per_s: float
    """Bytes after the first of each text, per second."""
    times_default: float
    """Its speed divided by that of the default method and threads, measured in turn."""
    prompts: int
    """Number of prompts."""
    version: str
    """Of fastblt."""
    runs: BundleKey | None = None
    """The bundle to run in place of the tuned one, which writes another text; None: the tuned one."""
    machine: dict[str, Any] = dataclasses.field(default_factory=machine_identity)
    """`machine_identity` where it was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the file holds, in plain JSON types."""
        return {"format": FORMAT, "version": FORMAT_VERSION, "fastblt": self.version, **self._fields()}

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        del fields["version"]
        return fields


def profile_path(bundle: Path, backend: str, provider: str) -> Path:
    """Return the file of a profile, which need not exist."""
    return profiles_folder(bundle) / f"{backend}-{provider}.json"


def profiles_folder(bundle: Path) -> Path:
    """Return the folder of all profiles of a bundle, which need not exist."""
    path = os.path.realpath(bundle)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:_DIGITS]
    name = re.sub(r"[^\w.-]", "_", os.path.basename(path), flags=re.ASCII)[:64]
    return settings_folder() / "profiles" / f"{name}-{digest}"


def write_profile(profile: Profile) -> Path:
    """Write a profile to its file, atomically, and return that.

    Raises:
        OSError: it cannot be written.
    """
    path = profile_path(Path(profile.bundle.path), profile.backend, profile.provider)
    write_json(path, profile.to_dict())
    return path


def find_profile(bundle: Path, backend: str, provider: str) -> Profile | None:
    """Return the profile of a bundle; None where it was not tuned, or is a checkpoint.

    Raises:
        ProfileError: the file is damaged, or of another machine, or the bundle has changed since, or the one that it
            runs instead.
    """
    path = profile_path(bundle, backend, provider)
    if not path.exists() or not is_bundle(bundle):
        return None
    profile = read_profile(path)
    if (found := (profile.backend, profile.provider)) != (backend, provider):
        raise ProfileError(f"{path}: found a profile of {' and '.join(found)}, expected {backend} and {provider}")
    _check_machine(path, profile)
    for key in filter(None, (profile.bundle, profile.runs)):
        _check_bundle(path, key)
    return profile


def profiles_of(bundle: Path) -> Iterator[Profile | ProfileError]:
    """Yield all profiles of a bundle; of one that cannot be used, why."""
    for path in sorted(profiles_folder(bundle).glob("*.json")):
        backend, _, provider = path.stem.rpartition("-")
        try:
            found = find_profile(bundle, backend, provider)
        except ProfileError as error:
            yield error
        else:
            if found is not None:
                yield found


def read_profile(path: Path) -> Profile:
    """Read a profile, whatever machine and bundle it is of.

    Raises:
        ProfileError: it is not one that this version reads.
    """
    data = JsonEntries(path, read_json(path, ProfileError, "a profile of fastblt tune"), ProfileError)
    if (found := (data.data.get("format"), data.data.get("version"))) != (FORMAT, FORMAT_VERSION):
        data.refuse("format", f"{FORMAT!r}, version {FORMAT_VERSION}", found)
    machine = data.object("machine")
    gpus = machine.items("gpus", _GPUS)
    machine.expect(all(isinstance(each, str) for each in gpus), "gpus", "a list of names")
    machine.text("cpu")
    machine.integer("usable_cores", 1, THREADS)
    allow_lossy = data.flag("allow_lossy")
    runs = None if data.data.get("runs") is None else _read_key(data.object("runs"))
    data.expect(runs is None or allow_lossy, "runs", "null, because allow_lossy is false")
    return Profile(
        bundle=_read_key(data.object("bundle")),
        backend=data.text("backend"),
        provider=data.text("provider"),
        method=_read_method(data, allow_lossy=allow_lossy),
        threads=None if data.data.get("threads") is None else data.integer("threads", 1, THREADS),
        allow_lossy=allow_lossy,
        bytes_per_s=_read_positive(data, "bytes_per_s", _BYTES_PER_S),
        times_default=_read_positive(data, "times_default", FACTOR),
        prompts=data.integer("prompts", 1, 2**31),
        version=data.text("fastblt"),
        runs=runs,
        machine=machine.data,
    )


def _read_key(data: JsonEntries) -> BundleKey:
    path = data.data.get("path")
    fits = isinstance(path, str) and len(path) <= _PATH_CHARACTERS and os.path.isabs(path) and "\0" not in path
    data.expect(fits, "path", "the absolute path of a bundle")
    return BundleKey(str(path), read_digest(data, "manifest"))


def _read_method(data: JsonEntries, *, allow_lossy: bool) -> str:
    name = data.text("method")
    try:
        lossless = parse_method(name).lossless
    except MethodError as error:
        raise ProfileError(f"{data.path}: {error}") from error
    data.expect(lossless or allow_lossy, "method", "a lossless method, because allow_lossy is false")
    return name


def _read_positive(data: JsonEntries, name: str, most: float) -> float:
    value = data.number(name)
    data.expect(0 < value <= most, name, f"a number greater than 0, up to {most:g}")
    return value


def _check_machine(path: Path, profile: Profile) -> None:
    here = machine_identity()
    for name, expected in here.items():
        if (found := profile.machine.get(name)) != expected:
            raise ProfileError(
                f"{path}: found a profile of another machine ({name} {shown(found)}), expected {shown(expected)}"
            )


def _check_bundle(path: Path, key: BundleKey) -> None:
    if not is_bundle(Path(key.path)):
        raise ProfileError(f"{path}: found no bundle at {key.path}, expected the one that the profile runs")
    found = load_manifest(Path(key.path)).digest
    if found != key.manifest:
        raise ProfileError(
            f"{path}: found a profile of another bundle at {key.path} (manifest {key.manifest[:_DIGITS]}), "
            f"expected {found[:_DIGITS]}"
        )
