"""Describes folders of compiled engines, ``BUNDLE/engines/<target>-<version>-<sm>/``, and finds the one that fits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError, check_file, sha256_of

FORMAT = "fastblt-engines"
FORMAT_VERSION = 1
ENGINES_FOLDER = "engines"
ENGINES_FILE = "engines.json"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeProfile:
    """Holds the shapes that an engine takes, for each input with sizes that calls choose."""

    name: str
    """``byte``, ``verify`` or ``prefill``."""
    shapes: dict[str, tuple[Shape, Shape, Shape]]
    """Smallest, usual and largest shape, by input."""

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Return whether all inputs have shapes of this profile."""
        return all(
            all(low <= size <= high for low, size, high in zip(least, shapes[name], most, strict=True))
            for name, (least, _, most) in self.shapes.items()
        )


@dataclass(frozen=True)
class EngineSpec:
    """Describes one compiled graph."""

    part: str
    file: str
    bytes: int
    sha256: str
    slots: int
    """Number of slots of each cache."""
    pool_slots: int
    """Number of slots of the encoder's pool; 0 for the other graphs."""
    profiles: tuple[ShapeProfile, ...]
    aliases: dict[str, str]
    """Cache that each cache update overwrites in place, by output."""
    decomposed: bool
    """Whether attention is made of matrix products where there is no kernel for it."""
    build_seconds: float

    def profile_of(self, shapes: Mapping[str, Shape]) -> int | None:
        """Return the index of the first profile that takes these shapes; None: no profile does."""
        return next((index for index, profile in enumerate(self.profiles) if profile.takes(shapes)), None)


@dataclass(frozen=True)
class EngineFolder:
    """Describes a folder of engines: every graph of a bundle, for one or more capacities."""

    path: Path
    target: str
    version: str
    sms: tuple[int, ...]
    dtype: str
    operators: str
    bundle_sha256: str
    """Digest of the manifest of the bundle that was compiled."""
    engines: tuple[EngineSpec, ...]
    capacities: dict[int, dict[str, int]]
    """Index of the engine of each part, by the ``max_bytes`` that they are for."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the folder's manifest holds, in plain JSON types, without the path."""
        plain = dataclasses.asdict(self)
        del plain["path"]
        found: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **plain}))
        return found

    def engines_for(self, max_bytes: int) -> dict[str, EngineSpec] | None:
        """Return the engine of each part for the smallest capacity that holds ``max_bytes``; None: none does."""
        fitting = [capacity for capacity in self.capacities if capacity >= max_bytes]
        if not fitting:
            return None
        return {part: self.engines[index] for part, index in self.capacities[min(fitting)].items()}


def folder_name(target: str, version: str, sms: tuple[int, ...]) -> str:
    """Return the name of the engine folder for a target, its version and compute capabilities."""
    return f"{target}-{version}-sm{'_'.join(str(sm) for sm in sms)}"


def load_engine_folder(path: Path) -> EngineFolder:
    """Read the manifest of an engine folder.

    Raises:
        BundleError: it is missing, or not one that this version reads.
    """
    file = path / ENGINES_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        found = data.get("format"), data.get("format_version")
        if found != (FORMAT, FORMAT_VERSION):
            raise BundleError(f"{file}: found format {found}, expected {(FORMAT, FORMAT_VERSION)}")
        return EngineFolder(
            path=path,
            target=str(data["target"]),
            version=str(data["version"]),
            sms=tuple(int(sm) for sm in data["sms"]),
            dtype=str(data["dtype"]),
            operators=str(data["operators"]),
            bundle_sha256=str(data["bundle_sha256"]),
            engines=tuple(_engine(item) for item in data["engines"]),
            capacities={
                int(size): {str(part): int(index) for part, index in parts.items()}
                for size, parts in data["capacities"].items()
            },
        )
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}), fastblt compile writes it") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BundleError(f"{file}: found no usable entry {error}, expected what fastblt compile writes") from error
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{file}: not a manifest of engines ({error})") from error


def _engine(data: dict[str, Any]) -> EngineSpec:
    profiles = tuple(
        ShapeProfile(
            str(item["name"]),
            {
                str(name): (_shape(bounds[0]), _shape(bounds[1]), _shape(bounds[2]))
                for name, bounds in item["shapes"].items()
            },
        )
        for item in data["profiles"]
    )
    name = str(data["file"])
    if Path(name).name != name:
        raise ValueError(f"found file name {name!r}, expected a plain one")
    return EngineSpec(
        part=str(data["part"]),
        file=name,
        bytes=int(data["bytes"]),
        sha256=str(data["sha256"]),
        slots=int(data["slots"]),
        pool_slots=int(data["pool_slots"]),
        profiles=profiles,
        aliases={str(update): str(cache) for update, cache in data["aliases"].items()},
        decomposed=bool(data["decomposed"]),
        build_seconds=float(data["build_seconds"]),
    )


def _shape(sizes: Any) -> Shape:
    return tuple(int(size) for size in sizes)


def engine_folders(bundle: Path) -> list[Path]:
    """Return the engine folders of a bundle."""
    found = sorted(path.parent for path in (bundle / ENGINES_FOLDER).glob(f"*/{ENGINES_FILE}"))
    return [path for path in found if not path.name.startswith(".")]  # what a killed compilation left


def choose_engines(bundle: Path, target: str, version: str, sm: int, max_bytes: int) -> EngineFolder:
    """Return the engine folder whose engines run on this machine.

    Args:
        bundle: folder of the bundle.
        target: ``tensorrt`` or ``tensorrt-rtx``.
        version: of that library.
        sm: compute capability of the GPU, e.g. 89.
        max_bytes: longest prompt plus new bytes.

    Raises:
        BundleError: there is none; the message names those that exist, and the command that makes one.
    """
    reasons = []
    for path in engine_folders(bundle):
        try:
            folder = load_engine_folder(path)
            reason = _misfit(bundle, folder, target, version, sm, max_bytes)
        except BundleError as error:
            reason = str(error)
        else:
            if reason is None:
                return folder
        reasons.append(f"{path.name}: {reason}")
    command = f"fastblt compile {bundle} --target {target} --sm {sm} --max-bytes {max_bytes}"
    found = "; ".join(reasons) or "none"
    raise BundleError(f"{bundle}: found engines: {found}; expected engines for this machine: {command}")


def _misfit(bundle: Path, folder: EngineFolder, target: str, version: str, sm: int, max_bytes: int) -> str | None:
    """Return why engines do not run on this machine; None: they do."""
    if folder.target != target:
        return f"for {folder.target}"
    if folder.version != version:
        return f"built with version {folder.version}, {version} is installed"
    if sm not in folder.sms:
        return f"for SM {', '.join(str(known) for known in folder.sms)}, the GPU has SM {sm}"
    if folder.bundle_sha256 != sha256_of(bundle / MANIFEST_FILE):
        return "compiled from another export of this bundle"
    if folder.engines_for(max_bytes) is None:
        return f"for at most {max(folder.capacities, default=0)} bytes, asked for {max_bytes}"
    return None


def check_engine(folder: EngineFolder, engine: EngineSpec) -> Path:
    """Return the path of an engine's file, compared with the manifest.

    Raises:
        BundleError: it is missing or differs in size or sha256.
    """
    path = folder.path / engine.file
    check_file(path, engine.bytes, engine.sha256)
    return path
