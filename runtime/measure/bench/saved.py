"""Reads the report of a benchmark back from the JSON file that ``fastblt bench --json`` wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from fastblt.models.limits import THREADS
from fastblt.models.reading import read_json
from fastblt.runtime.bundle.json_entries import JsonEntries
from fastblt.runtime.measure.bench.plan import BenchPlan, Contender
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport, BenchRequest

#: Most contenders, and most entries of an object, that a file may have.
_ROWS, _ENTRIES = 1000, 100
#: Largest count in a file.
_COUNT = 2**62
_TYPES: dict[str, Any] = get_type_hints(BenchRow)


class BenchFileError(ValueError):
    """Reports a file that is no report of a benchmark."""


def read_bench(path: Path, model: str, dtype: str) -> BenchReport:
    """Read a report; figures that earlier versions did not have yet are null.

    Args:
        path: of the JSON file.
        model: name of the model, which the file does not hold.
        dtype: type of its bundle.

    Raises:
        BenchFileError: it cannot be read, or is something else; the message names the entry.
    """
    expected = "a file that `fastblt bench --json` wrote"
    data = JsonEntries(path, read_json(path, BenchFileError, expected), BenchFileError)
    if "streams" in data.data or "servers" in data.data:
        raise BenchFileError(f"{path}: found figures of texts that grow together, expected those of one text at a time")
    rows = [_read_row(each) for each in data.objects("rows", _ROWS)]
    data.expect(bool(rows), "rows", "at least one", rows)
    contenders = tuple(Contender(row.backend, row.method) for row in rows)
    backend = rows[0].backend  # `make_bench_plan` puts the bench's own backend first
    plan = BenchPlan(contenders, backend, next((c.backend for c in contenders if c.backend != backend), None))
    replay = None if data.data.get("replay") is None else data.text("replay")
    device = _read_device(data.object("device", _ENTRIES))
    request = BenchRequest(methods=plan.methods, backend=backend, threads=device["threads"], replay=replay)
    return BenchReport(request, plan, model, dtype, device, rows)


def _read_row(data: JsonEntries) -> BenchRow:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(BenchRow):
        kinds = get_args(_TYPES[field.name])
        if data.data.get(field.name) is None and NoneType in kinds:
            values[field.name] = None
        elif field.name in data.data or field.default is dataclasses.MISSING:
            kind = kinds[0] if NoneType in kinds else _TYPES[field.name]
            values[field.name] = _read_figure(data, field.name, kind)
    return BenchRow(**values)


def _read_figure(data: JsonEntries, name: str, kind: Any) -> Any:
    if kind is str:
        return data.text(name)
    if kind is bool:
        return data.flag(name)
    if kind is int:
        return data.integer(name, 0, _COUNT)
    if kind is float:
        return data.number(name)
    figures = data.object(name, _ENTRIES)
    return {key: None if value is None else figures.number(key) for key, value in figures.data.items()}


def _read_device(data: JsonEntries) -> dict[str, Any]:
    """Return the fields of `device_info`."""
    versions = data.object("versions", _ENTRIES)
    gpus = data.items("gpus", _ENTRIES)
    data.expect(all(isinstance(gpu, str) for gpu in gpus), "gpus", "a list of names")
    return {
        "cpu": data.text("cpu"),
        "cores": data.integer("cores", 1, _COUNT),
        "usable_cores": data.integer("usable_cores", 1, _COUNT),
        "threads": None if data.data.get("threads") is None else data.integer("threads", 1, THREADS),
        "memory_gb_per_s": data.number("memory_gb_per_s"),
        "gpus": gpus,
        "os": data.text("os"),
        "python": data.text("python"),
        "versions": {name: versions.text(name) for name in versions.data},
    }
