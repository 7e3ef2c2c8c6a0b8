"""Stores samples of graph calls on disk: npz shards and an index, a fair choice of all calls that were offered.

Each stratum of a graph (one byte, a verified chunk, a block of which half is hidden, ...) keeps the calls with the
smallest random numbers, which is a reservoir: whatever the number of calls, each has the same chance. The numbers
depend only on the seed and the call, so that a recording that was interrupted and continued has the same samples.

==================  ==================================================================
``traces.json``     format, digest of the model, what was recorded, where samples are
``shard-NNNNN.npz`` arrays ``<sample>/<input>``: the inputs of whole calls
==================  ==================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.calibration.precision import CalibrationError
from fastblt.models import limits
from fastblt.models.atomic_file import replacing_file, write_file
from fastblt.models.atomic_partial import remove_leftovers
from fastblt.models.config import build_dataclass, expect, expect_integer, expect_number
from fastblt.models.plain_zip import check_plain
from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.runtime.bundle.manifest import Manifest

INDEX_FILE = "traces.json"
FORMAT, VERSION = "fastblt-traces", 1
#: Bytes of arrays that are kept in memory before they are written to a shard.
PENDING_BYTES = 128 * 2**20

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """Describes one call that is kept."""

    part: str
    stratum: str
    priority: float
    rows: int
    shard: int
    key: int
    """Key of its arrays in the shard."""


@dataclass
class Index:
    """Holds the content of the index file."""

    model: str
    """`model_digest` of the bundle."""
    setting: dict[str, Any]
    """What determines the samples: methods, prompts, seed, samples per graph."""
    units: int = 0
    """Units of work (a prompt with a method) that are recorded."""
    complete: bool = False
    shards: int = 0
    """Number of shards that were ever begun."""
    offered: dict[str, int] = field(default_factory=dict)
    """Calls that were made, by graph and stratum."""
    samples: list[Sample] = field(default_factory=list)


def model_digest(manifest: Manifest) -> str:
    """Return a digest that identifies a model: sha256 over the digests of a bundle's files."""
    digests = {name: entry["sha256"] for name, entry in manifest.files.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


class TraceStore:
    """Reads and writes a folder of traces.

    Args:
        folder: created if it is missing.
        model: digest of the model, see `model_digest`.
        setting: what determines the samples.

    Raises:
        CalibrationError: the folder contains traces of another model or setting, or is damaged.
    """

    def __init__(self, folder: Path, model: str, setting: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = _load(folder, model, setting)
        self.index = found or Index(model, setting)
        self._pending: list[tuple[Sample, Arrays]] = []
        self._pending_bytes = 0
        if found is None:
            self._save()  # before any shard: after an interruption it identifies them
        self._remove_strays()

    @property
    def samples(self) -> list[Sample]:
        """Return the samples that are kept."""
        return self.index.samples

    def offer(
        self, part: str, stratum: str, priority: float, capacity: int, rows: int, read: Callable[[], Arrays]
    ) -> None:
        """Offer a call; ``read`` copies its inputs, and is called only if it is kept for now.

        Args:
            part: part of the model whose graph is called.
            stratum: kind of call.
            priority: random number in [0, 1).
            capacity: number of calls of the stratum that are kept.
            rows: of the call.
            read: returns its inputs by name.
        """
        name = f"{part}/{stratum}"
        self.index.offered[name] = self.index.offered.get(name, 0) + 1
        rivals = sorted(s.priority for s in self._all() if (s.part, s.stratum) == (part, stratum))
        if len(rivals) >= capacity and priority >= rivals[capacity - 1]:
            return
        arrays = read()
        if len(rivals) >= capacity:
            self._drop(part, stratum, rivals[capacity - 1])
        self._pending.append((Sample(part, stratum, priority, rows, -1, -1), arrays))
        self._pending_bytes += sum(array.nbytes for array in arrays.values())
        if self._pending_bytes > PENDING_BYTES:
            self._write_shard()

    def end_unit(self, *, last: bool = False) -> None:
        """Save the samples of a finished unit of work; an interruption cannot lose them any more."""
        self._write_shard()
        self.index.units += 1
        self.index.complete = last
        self._save()
        self._remove_strays()

    def read(self, part: str) -> Iterator[tuple[Sample, Arrays]]:
        """Yield the samples of a graph with their arrays, shard by shard."""
        by_shard: dict[int, list[Sample]] = {}
        for sample in self.samples:
            if sample.part == part:
                by_shard.setdefault(sample.shard, []).append(sample)
        for shard, samples in sorted(by_shard.items()):
            path = self._path(shard)
            try:
                check_plain(path)
                with np.load(path, allow_pickle=False) as file:
                    for sample in samples:
                        prefix = f"{sample.key}/"
                        yield sample, {n.removeprefix(prefix): file[n] for n in file.files if n.startswith(prefix)}
            except Exception as error:  # NumPy raises whatever a damaged header makes Python raise
                raise CalibrationError(f"{path}: cannot be read ({error}), expected a shard of traces") from error

    def _all(self) -> Iterator[Sample]:
        yield from self.index.samples
        yield from (sample for sample, _ in self._pending)

    def _drop(self, part: str, stratum: str, priority: float) -> None:
        def stays(sample: Sample) -> bool:
            return (sample.part, sample.stratum, sample.priority) != (part, stratum, priority)

        self.index.samples = [sample for sample in self.index.samples if stays(sample)]
        self._pending = [item for item in self._pending if stays(item[0])]
        self._pending_bytes = sum(array.nbytes for _, arrays in self._pending for array in arrays.values())

    def _write_shard(self) -> None:
        if not self._pending:
            return
        shard = self.index.shards
        arrays: Arrays = {}
        for key, (sample, inputs) in enumerate(self._pending):
            arrays |= {f"{key}/{name}": array for name, array in inputs.items()}
            self.index.samples.append(Sample(sample.part, sample.stratum, sample.priority, sample.rows, shard, key))
        path = self._path(shard)
        with replacing_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
        self.index.shards += 1
        self._pending, self._pending_bytes = [], 0

    def _save(self) -> None:
        data = {"format": FORMAT, "version": VERSION, **asdict(self.index)}
        write_file(self.folder / INDEX_FILE, json.dumps(data, indent=1) + "\n")

    def _remove_strays(self) -> None:
        """Delete shards without samples, and those that an interrupted unit left."""
        used = {self._path(sample.shard) for sample in self.index.samples}
        for path in self.folder.glob("shard-*.npz"):
            if path not in used:
                path.unlink()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npz"


def _load(folder: Path, model: str, setting: dict[str, Any]) -> Index | None:
    path = folder / INDEX_FILE
    if not path.exists():
        remove_leftovers(path)
        if any(folder.iterdir()):
            raise CalibrationError(f"{folder}: found files but no {INDEX_FILE}, expected traces or an empty folder")
        return None
    data = read_json(path, CalibrationError, "the index of traces")
    try:
        found = (data.pop("format"), data.pop("version"))
        index = Index(**{**data, "samples": [_sample(entry) for entry in data["samples"]]})
        _check(index)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error}), expected the index of traces") from error
    if found != (FORMAT, VERSION):
        raise CalibrationError(f"{path}: found format {shown(found)}, expected {(FORMAT, VERSION)}")
    if index.model != model:
        raise CalibrationError(
            f"{path}: found traces of model {index.model[:12]}, expected {model[:12]}: another bundle"
        )
    for name, value in setting.items():
        if index.setting.get(name) != value:
            raise CalibrationError(f"{path}: found {name} {index.setting.get(name)!r:.60}, expected {value!r:.60}")
    return index


def _sample(entry: object) -> Sample:
    """Return an entry of the index; raise ConfigError unless its fields are plain and bounded."""
    sample = build_dataclass(Sample, entry, "samples.")
    assert isinstance(sample, Sample)
    for name in ("part", "stratum"):
        text = getattr(sample, name)
        expect(text.isprintable() and len(text) <= limits.NAME_CHARACTERS, f"samples.{name}", text, "a short name")
    expect_number("samples.priority", sample.priority, 1)
    expect_integer("samples.rows", sample.rows, limits.TEXT_BYTES, 0)
    expect_integer("samples.shard", sample.shard, limits.SHARDS, 0)
    expect_integer("samples.key", sample.key, limits.SHARDS, 0)
    return sample


def _check(index: Index) -> None:
    """Raise ConfigError unless the fields that have no type of their own are plain and bounded."""
    expect(isinstance(index.model, str), "model", index.model, "a digest")
    expect(isinstance(index.setting, dict), "setting", index.setting, "an object")
    expect(isinstance(index.offered, dict), "offered", index.offered, "an object")
    expect(isinstance(index.complete, bool), "complete", index.complete, "true or false")
    expect_integer("units", index.units, limits.SHARDS, 0)
    expect_integer("shards", index.shards, limits.SHARDS, 0)
    for name, count in index.offered.items():
        expect_integer(f"offered.{name}", count, limits.STEPS, 0)
