"""Reads what ``fastblt bench --url --json`` measured of a server as the figures of a replica."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastblt.models.reading import read_json
from fastblt.runtime.fleet.capacity.figures import FiguresError, ReplicaFigures


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
    data = read_json(path, FiguresError, "a report of `fastblt bench --url --json`")
    try:
        found = [row for row in data["rows"] if row["endpoint"] == data["rows"][0]["endpoint"]]
        names = [row["method"] for row in found]
        wanted = names[0] if method is None and names else method
        rows = sorted((row for row in found if row["method"] == wanted), key=lambda row: int(row["clients"]))
        if not rows:
            known = ", ".join(str(name) for name in dict.fromkeys(names))
            raise FiguresError(f"{path}: found no row of {wanted}, expected one of {known or 'some method'}")
        if any(row["errors"] for row in rows):
            raise FiguresError(f"{path}: found errors among the requests, expected a report without any")
        prompt = _positive(data["prompt_bytes"]) / _positive(data["prompts"])
        reading = prompt / _positive(rows[0]["first_byte_ms_p50"]) * 1e3
        return ReplicaFigures(
            tuple(int(row["clients"]) for row in rows),
            tuple(_positive(row["bytes_per_s"]) for row in rows),
            reading,
            places,
            price_per_hour,
            f"{path.name}, {wanted or 'default method'}, asked from {data['device']['cpu']}",
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, FiguresError):
            raise FiguresError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
        raise FiguresError(f"{path}: found {error!r}, expected a report of `fastblt bench --url --json`") from None


def _positive(value: Any) -> float:
    found = float(value)
    if not 0 < found < math.inf:
        raise FiguresError(f"found {value}, expected a figure greater than 0")
    return found
