"""Chooses values that parsers of numbers, names and nested documents do not expect."""

from __future__ import annotations

import random
from typing import Any

_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 64, 255, 256, 1000, 65_536, 50_000_000, 2**31 - 1, 2**31, 2**32, 2**62, 2**63),
    *(-(2**31), -(2**63), 10**30, 0.5, 1.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    {"$power": 400},
    {"$power": 5000},
)
_STRINGS: tuple[Any, ...] = (
    *("", " ", "x", "..", ".", "/", "/etc/passwd", "../config.json", "config.json", "manifest.json", "decoder.onnx"),
    *("a/b", "a\\b", "\x00", "\x1b[31mred\x1b[0m", "\u202etxt", "\ud800", "[/x]", "[bold]", "%s%n", "{0}", "é", "1"),
    *("float32", "float16", "bfloat16", "int64", "int32", "float64", "fp16", "bf16", "F32", "F16", "BF16", "I64"),
    *("host", "graph", "lowered", "standard", "cache", "cache_update", "embedding", "encoder", "space", "static"),
    {"$repeat": ["a", 5000]},
    {"$repeat": ["a\n", 300]},
)
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [1, 2], [0], [-1, 2**62])
_NESTED: tuple[Any, ...] = ({"$nest": 5_000}, {"$nest": 100_000})


def strange_value(rng: random.Random) -> Any:
    """Return a value of any JSON type."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_NUMBERS)
    if kind < 0.75:
        return rng.choice(_STRINGS)
    return rng.choice(_OTHERS) if kind < 0.98 else rng.choice(_NESTED)


def near(rng: random.Random, value: Any) -> Any:
    """Return a value of the same kind that is likely to be accepted, and wrong."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        factor = rng.choice((2, 3, 1000, 2**16, 2**31))
        return rng.choice((value + 1, value - 1, -value, value * factor, value // 2, rng.choice(_NUMBERS)))
    if isinstance(value, float):
        return rng.choice((value * 2, -value, value + 1e-9, int(value), rng.choice(_NUMBERS)))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        longer = value[:at] + rng.choice(("x", "0", "/", "..", "\n", "é", "_")) + value[at:]
        return rng.choice((longer, value[:at], value[::-1], value.upper(), rng.choice(_STRINGS)))
    if isinstance(value, list):
        return _near_list(rng, value)
    return strange_value(rng)


def _near_list(rng: random.Random, value: list[Any]) -> list[Any]:
    changed = list(value)
    if not changed or rng.random() < 0.2:
        return [*changed, strange_value(rng)]
    at = rng.randrange(len(changed))
    match rng.randrange(5):
        case 0:
            del changed[at]
        case 1:
            changed.insert(at, changed[rng.randrange(len(changed))])
        case 2:
            changed.reverse()
        case 3:
            rng.shuffle(changed)
        case _:
            changed[at] = near(rng, changed[at])
    return changed


def plain(value: Any) -> Any:
    """Return a value with its short forms written out; `nested` texts stay, because no parser of JSON makes them."""
    if isinstance(value, dict):
        match value:
            case {"$power": int(digits)}:
                return 10 ** min(digits, 4000)
            case {"$repeat": [str(text), int(count)]}:
                return text * count
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value
