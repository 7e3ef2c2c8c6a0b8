"""Reads what ``fastblt bench --url --json`` measured of a server as the figures of a replica."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.runtime.fleet.capacity.figures import LARGEST, FiguresError, ReplicaFigures

#: What is read.
_REPORT = "report of `fastblt bench --url --json`"


def read_report(path: Path, places: int, price_per_hour: float, method: str | None = None) -> ReplicaFigures:
    """Return the figures of the replica that a report is about; of several servers, the first.

    The time to the first byte of a client that is alone counts as the time to read its prompt, although it has a round
    and the way through the network in it: figures of real prompts are no better than that.

    Args:
        path: what ``fastblt bench --url --json`` wrote, with a row of one client.
        places: sequences that the replica keeps in memory.
        price_per_hour: of the replica.
        method: whose rows are taken; None: those of the first one.

    Raises:
        FiguresError: it is no such report, or describes no replica.
    """
    data = read_json(path, FiguresError, f"a {_REPORT}")
    try:
        rows = _rows(data, method)
        wanted = rows[0].get("method") or "default method"
        prompt = _figure(data, "prompt_bytes") / _figure(data, "prompts")
        return ReplicaFigures(
            tuple(int(_figure(row, "clients")) for row in rows),
            tuple(_figure(row, "bytes_per_s") for row in rows),
            prompt / _figure(rows[0], "first_byte_ms_p50") * 1e3,
            places,
            price_per_hour,
            f"{path.name}, {wanted}, asked from {_field(_field(data, 'device'), 'cpu')}",
        )
    except FiguresError as error:
        raise FiguresError(f"{path}: {error}") from None


def _rows(data: Any, method: str | None) -> list[Any]:
    """Return the rows of the first server and of one method, by the number of clients."""
    rows = _field(data, "rows")
    if not isinstance(rows, list) or not rows:
        raise FiguresError(f"rows: found {shown(rows)}, expected the rows of a {_REPORT}")
    found = [row for row in rows if _field(row, "endpoint") == _field(rows[0], "endpoint")]
    names = [_field(row, "method") for row in found]
    wanted = names[0] if method is None else method
    taken = [row for row in found if row["method"] == wanted]
    if not taken:
        known = ", ".join(dict.fromkeys(str(name) for name in names))
        raise FiguresError(f"method: found no row of {wanted}, expected one of {known}")
    if any(_field(row, "errors") for row in taken):
        raise FiguresError("found errors among the requests, expected a report without any")
    return sorted(taken, key=lambda row: _figure(row, "clients"))


def _field(found: Any, name: str) -> Any:
    if not isinstance(found, dict) or name not in found:
        raise FiguresError(f"{name}: found {shown(found)} without it, expected a {_REPORT}")
    return found[name]


def _figure(found: Any, name: str) -> float:
    value = _field(found, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise FiguresError(
            f"{name}: found {shown(value)}, expected a {_REPORT} with a number greater than 0 and at most {LARGEST:g}"
        )
    return float(value)
