"""Changes safetensors files: the header's fields, and its length."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from campaign.changes import json_file
from campaign.changes.values import near

Change = dict[str, Any]


def propose(rng: random.Random, path: Path) -> Change:
    """Return a change of the header."""
    header, _ = split(path)
    if rng.random() < 0.15:
        sizes = (0, 1, 7, 2**31, 2**63, 2**64 - 1, rng.randrange(4096))
        return {"op": "safetensors length", "value": rng.choice(sizes)}
    document = json.loads(header)
    name = rng.choice([key for key in document if key != "__metadata__"])
    kind = rng.random()
    if kind < 0.5:
        field = rng.choice(["dtype", "shape", "data_offsets"])
        place = [name, field]
        value = json_file.found_at(document, place)
        if field == "dtype":
            kinds = ("F16", "BF16", "I64", "F64", "BOOL", "I8", 4)
            return _change({"op": "json set", "at": place, "value": rng.choice(kinds)})
        if rng.random() < 0.7:
            at = rng.randrange(len(value))
            return _change({"op": "json set", "at": [*place, at], "value": near(rng, value[at])})
        return _change({"op": "json set", "at": place, "value": near(rng, value)})
    if kind < 0.6:  # one tensor over another
        other = rng.choice([key for key in document if key != "__metadata__"])
        return _change({"op": "json copy", "at": [name, "data_offsets"], "from": [other, "data_offsets"]})
    if kind < 0.7:  # both ends moved: the size stays, the place does not
        begin, end = document[name]["data_offsets"]
        by = rng.choice((-(2**31), -begin - 8, -8, -4, 1, 4, 2**20, 2**40))
        return _change({"op": "json set", "at": [name, "data_offsets"], "value": [begin + by, end + by]})
    return _change(json_file.propose_in(rng, document))


def apply(path: Path, change: Change) -> None:
    """Change the file at ``path``; a header that is no JSON stays unchanged."""
    try:
        header, data = split(path)
        if change["op"] == "safetensors length":
            path.write_bytes(int(change["value"]).to_bytes(8, "little") + header + data)
            return
        text = json_file.changed_text(json.loads(header), change["change"]).encode(errors="surrogatepass")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def split(path: Path) -> tuple[bytes, bytes]:
    """Return the header and the data of a file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + size], raw[8 + size :]


def _change(change: Change) -> Change:
    return {"op": "safetensors header", "change": change}
