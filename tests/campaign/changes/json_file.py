"""Changes JSON documents: a value somewhere in the tree, or the text itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from campaign.changes.values import near, plain, strange_value

Change = dict[str, Any]


def propose(rng: random.Random, path: Path) -> Change:
    """Return a change of the document at ``path``."""
    return propose_in(rng, json.loads(path.read_text(encoding="utf-8")))


def propose_in(rng: random.Random, document: Any) -> Change:
    """Return a change of a document."""
    paths = places(document)
    place = rng.choice(paths)
    # A manifest repeats some fields hundreds of times: choose a field first, then one of the places that have it.
    same = [path for path in paths if path[-1] == place[-1]]
    if rng.random() < 0.5:
        name = rng.choice(sorted({str(path[-1]) for path in paths}))
        same = [path for path in paths if str(path[-1]) == name]
        place = rng.choice(same)
    kind = rng.random()
    if kind < 0.15:
        return {"op": "json copy", "at": place, "from": rng.choice(same)}
    if kind < 0.45:
        return {"op": "json set", "at": place, "value": near(rng, found_at(document, place))}
    if kind < 0.65:
        return {"op": "json set", "at": place, "value": strange_value(rng)}
    if kind < 0.75:
        return {"op": "json delete", "at": place}
    if kind < 0.9:
        return {"op": "json copy", "at": place, "from": rng.choice(paths)}
    if kind < 0.95:
        return {"op": "json set", "at": [*place[:-1], rng.choice(("new", "", "__class__", "$ref"))], "value": 1}
    return {"op": "json twice", "at": place, "value": near(rng, found_at(document, place))}


def apply(path: Path, change: Change) -> None:
    """Change the document at ``path``; a place that is not there leaves it unchanged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        text = changed_text(document, change)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return  # an earlier change has left no JSON, or not this place
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def changed_text(document: Any, change: Change) -> str:
    """Return the text of a document after a change."""
    place = change["at"]
    match change["op"]:
        case "json set":
            return _written(put(document, place, change["value"]))
        case "json delete":
            return _written(put(document, place, None, delete=True))
        case "json copy":
            return _written(put(document, place, found_at(document, change["from"])))
        case "json twice":  # a key that occurs twice: parsers take the last
            text = _written(document)
            return text[:-1] + f",{json.dumps(str(place[0] if place else ''))}:{_written(change['value'])}" + text[-1:]
        case other:
            raise ValueError(f"op: found {other!r}")


def _written(document: Any) -> str:
    """Return a document as text, nested lists of any depth included."""
    deep: list[int] = []

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {"$nest"}:
                deep.append(int(value["$nest"]))
                return f"$nest {len(deep) - 1}$"
            if set(value) == {"$power"} and value["$power"] > 4000:
                deep.append(-int(value["$power"]))
                return f"$nest {len(deep) - 1}$"
            return {key: marked(each) for key, each in value.items()}
        return [marked(each) for each in value] if isinstance(value, list) else value

    text = json.dumps(plain(marked(document)))
    for index, depth in enumerate(deep):
        literal = "[" * depth + "]" * depth if depth > 0 else "1" + "0" * -depth
        text = text.replace(f'"$nest {index}$"', literal)
    return text


def places(document: Any, prefix: tuple[Any, ...] = ()) -> list[list[Any]]:
    """Return the path of every value in a document, the whole excepted."""
    found: list[list[Any]] = []
    items: Any = document.items() if isinstance(document, dict) else ()
    if isinstance(document, list):
        items = enumerate(document)
    for key, value in items:
        found.append([*prefix, key])
        found += places(value, (*prefix, key))
    return found


def found_at(document: Any, place: list[Any]) -> Any:
    """Return the value at a path."""
    for key in place:
        document = document[key]
    return document


def put(document: Any, place: list[Any], value: Any, *, delete: bool = False) -> Any:
    """Return the document with another value at a path, or without it."""
    if not place:
        return value
    parent = found_at(document, place[:-1])
    if delete:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return document
