"""Describes folders of compiled engines, ``BUNDLE/engines/<target>-<version>-<sm>/``, and finds the one that fits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.models import limits
from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.runtime.bundle.dtypes import DTYPES
from fastblt.runtime.bundle.json_entries import JsonEntries, is_file_name, is_integer
from fastblt.runtime.bundle.manifest import (
    BATCH,
    KNOWN_GRAPHS,
    MANIFEST_FILE,
    OPERATORS,
    BundleError,
    GraphSpec,
    TensorSpec,
    check_file,
    check_own_file,
    read_digest,
    read_file_entry,
    sha256_of,
)

FORMAT = "fastblt-engines"
FORMAT_VERSION = 1
ENGINES_FOLDER = "engines"
ENGINES_FILE = "engines.json"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeProfile:
    """Holds the shapes that an engine takes, for each input with sizes that calls choose."""

    name: str
    """``byte``, ``verify``, ``prefill``; or, for calls of several sequences, ``batch-4`` and ``batch-16``."""
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
    """Number of slots of each cache; the most where calls choose it."""
    pool_slots: int
    """Number of slots of the encoder's pool; 0 for the other graphs."""
    profiles: tuple[ShapeProfile, ...]
    aliases: dict[str, str]
    """Cache that each cache update overwrites in place, by output."""
    decomposed: bool
    """Whether attention is made of matrix products where there is no kernel for it."""
    build_seconds: float
    least_slots: int
    """Fewest slots of each cache that may be bound; `slots` where the size is fixed."""
    appends: bool = False
    """Whether it returns the new rows of its caches (`appending`), though its graph updates them in place."""
    activation_bytes: int | None = None
    """Device memory that its activations need, at most, as the compiler reports it; None: unknown."""

    @property
    def any_slots(self) -> bool:
        """Return whether caches of different sizes may be bound."""
        return self.least_slots < self.slots

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


def appending_outputs(spec: GraphSpec) -> dict[str, TensorSpec]:
    """Return the new rows of each cache, ``key_0_rows`` [b, 1, n, d], by the output that updates it, ``key_0_out``."""
    positions = spec.input("positions")
    assert positions is not None, "every graph has positions"
    return {
        t.name: TensorSpec(
            f"{t.name.removesuffix('_out')}_rows",
            t.dtype,
            (t.shape[0], 1, positions.shape[1], t.shape[3]),
            "cache_rows",
        )
        for t in spec.outputs
        if t.role == "cache_update"
    }


def compiled_spec(spec: GraphSpec, *, appends: bool) -> GraphSpec:
    """Return the inputs and outputs of a graph's engine; see `EngineSpec.appends`."""
    rows = appending_outputs(spec) if appends else {}
    return dataclasses.replace(spec, outputs=tuple(rows.get(t.name, t) for t in spec.outputs))


def folder_name(target: str, version: str, sms: tuple[int, ...]) -> str:
    """Return the name of the engine folder for a target, its version and compute capabilities."""
    return f"{target}-{version}-sm{'_'.join(str(sm) for sm in sms)}"


def load_engine_folder(path: Path) -> EngineFolder:
    """Read the manifest of an engine folder.

    Raises:
        BundleError: it is missing, or not one that this version reads.
    """
    file = path / ENGINES_FILE
    if file.is_symlink():
        check_own_file(file)
    data = JsonEntries(file, read_json(file, BundleError, "what fastblt compile writes"), BundleError)
    found = data.data.get("format"), data.data.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise BundleError(f"{file}: found format {shown(found)}, expected {(FORMAT, FORMAT_VERSION)}")
    engines = tuple(_read_engine(item) for item in data.objects("engines", limits.FILES))
    return EngineFolder(
        path=path,
        target=data.text("target"),
        version=data.text("version"),
        sms=tuple(_integers(data, "sms", limits.SM)),
        dtype=data.one_of("dtype", DTYPES),
        operators=data.one_of("operators", OPERATORS),
        bundle_sha256=read_digest(data, "bundle_sha256"),
        engines=engines,
        capacities=_read_capacities(data.object("capacities", limits.FILES), engines),
    )


def _read_capacities(data: JsonEntries, engines: Sequence[EngineSpec]) -> dict[int, dict[str, int]]:
    """Return the engine of each part by capacity; every index is one of an engine of that part."""
    found = {}
    for size in data.data:
        known = size.isascii() and size.isdecimal() and len(size) <= len(str(limits.TEXT_BYTES))
        data.expect(known and 1 <= int(size) <= limits.TEXT_BYTES, size, f"1 to {limits.TEXT_BYTES} bytes", size)
        parts = data.object(size, len(KNOWN_GRAPHS))
        found[int(size)] = {part: parts.integer(part, 0, len(engines) - 1) for part in parts.data}
        for part, index in found[int(size)].items():
            parts.expect(engines[index].part == part, part, f"an engine of the {part}")
    return found


def _read_engine(data: JsonEntries) -> EngineSpec:
    name = data.text("file")
    data.expect(is_file_name(name), "file", "a plain one")
    entry = read_file_entry(data)
    aliases = data.object("aliases", limits.TENSORS)
    slots, known = data.integer("slots", 1, limits.SIZE), data.data
    return EngineSpec(
        part=data.one_of("part", tuple(KNOWN_GRAPHS)),
        file=name,
        bytes=entry["bytes"],
        sha256=entry["sha256"],
        slots=slots,
        pool_slots=data.integer("pool_slots", 0, limits.SIZE),
        profiles=tuple(_read_profile(item) for item in data.objects("profiles", limits.PROFILES)),
        aliases={update: aliases.text(update) for update in aliases.data},
        decomposed=data.flag("decomposed"),
        build_seconds=data.number("build_seconds"),
        # Earlier versions wrote none of these.
        least_slots=data.integer("least_slots", 1, slots) if "least_slots" in known else slots,
        appends=data.flag("appends") if "appends" in known else False,
        activation_bytes=None
        if known.get("activation_bytes") is None
        else data.integer("activation_bytes", 0, limits.FILE_BYTES),
    )


def _read_profile(data: JsonEntries) -> ShapeProfile:
    shapes = data.object("shapes", limits.TENSORS)
    return ShapeProfile(data.text("name"), {name: _read_bounds(shapes, name) for name in shapes.data})


def _read_bounds(data: JsonEntries, name: str) -> tuple[Shape, Shape, Shape]:
    """Return the smallest, usual and largest shape of an input, each size in this order."""
    bounds = data.items(name, 3)
    right = len(bounds) == 3 and all(
        isinstance(shape, list)
        and len(shape) == len(bounds[0]) <= limits.RANK
        and all(is_integer(size, 1, limits.SIZE) for size in shape)
        for shape in bounds
    )
    ordered = right and all(low <= usual <= high for low, usual, high in zip(*bounds, strict=True))
    data.expect(ordered, name, "three shapes of equal rank, each at least as large as the one before")
    least, usual, most = (tuple(shape) for shape in bounds)
    return least, usual, most


def _integers(data: JsonEntries, name: str, most: int) -> list[int]:
    values = data.items(name, limits.FILES)
    data.expect(all(is_integer(value, 1, most) for value in values), name, f"integers from 1 to {most}")
    return values


def check_engine_entry(folder: EngineFolder, engine: EngineSpec, spec: GraphSpec) -> None:
    """Compare the entry of an engine with the graph that it was compiled from.

    Raises:
        BundleError: aliases or profiles name other tensors than the graph's, or shapes that it cannot have.
    """
    where = f"{folder.path / ENGINES_FILE}: engine {engine.file}"
    outputs = compiled_spec(spec, appends=engine.appends).outputs
    updates = {t.name: t.name.removesuffix("_out") for t in outputs if t.role in ("cache_update", "pool_update")}
    if engine.aliases != updates:
        names = sorted({name for name, _ in engine.aliases.items() ^ updates.items()})
        raise BundleError(f"{where}: aliases: found {shown(names)} wrong or missing, expected the cache of each update")
    fixed = {"pool_slots": engine.pool_slots} | ({} if engine.any_slots else {"slots": engine.slots})
    sizes = {tensor.name: tuple(fixed.get(str(size), size) for size in tensor.shape) for tensor in spec.inputs}
    ranged = {name for name, shape in sizes.items() if not all(isinstance(size, int) for size in shape)}
    for profile in engine.profiles:
        if set(profile.shapes) != ranged:
            names = sorted(profile.shapes.keys() ^ ranged)
            raise BundleError(
                f"{where}: profile {profile.name}: found {shown(names)} wrong or missing, expected ranges"
            )
        _check_sequences(f"{where}: profile {profile.name}", profile, sizes)
        for name, shapes in profile.shapes.items():
            if not all(is_shape_of(shape, sizes[name]) for shape in shapes):
                raise BundleError(
                    f"{where}: profile {profile.name}: input {name}: found {shown(shapes)}, expected shapes like "
                    f"{list(sizes[name])}"
                )
            bounds = [shapes[at][axis] for at in (0, -1) for axis, size in enumerate(sizes[name]) if size == "slots"]
            if bounds not in ([], [engine.least_slots, engine.slots]):
                raise BundleError(
                    f"{where}: profile {profile.name}: input {name}: found {bounds} slots, expected "
                    f"{[engine.least_slots, engine.slots]}"
                )


def _check_sequences(where: str, profile: ShapeProfile, sizes: Mapping[str, Sequence[int | str]]) -> None:
    """Raise `BundleError` unless every input of a profile has the same numbers of sequences."""
    batched = {name: shapes for name, shapes in profile.shapes.items() if sizes[name][:1] == (BATCH,)}
    found = {tuple(shape[:1] for shape in shapes): name for name, shapes in batched.items()}
    if len(found) > 1:
        names = shown(sorted(found.values()))
        raise BundleError(f"{where}: inputs {names}: found other numbers of sequences each, expected the same")


def is_shape_of(shape: Sequence[int], sizes: Sequence[int | str]) -> bool:
    """Return whether a shape has these sizes, where a name stands for any number."""
    return len(shape) == len(sizes) and all(
        isinstance(size, str) or found == size for found, size in zip(shape, sizes, strict=True)
    )


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
