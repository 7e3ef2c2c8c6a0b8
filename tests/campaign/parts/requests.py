"""Generates with arguments of every kind: what is accepted must write the bytes of `ar`, what is not is one error."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from campaign.changes.values import near, plain, strange_value
from campaign.fixtures import BUNDLE
from campaign.judge import Judge
from campaign.part import Counts, Place, Recipe
from campaign.recipes import MakesRecipes

from fastblt.runtime.blt_runtime import BltRuntime

_MAX_BYTES = 256
_METHODS = (
    "ar",
    "s:1",
    "s:4",
    "s:8",
    "s:4+partial",
    "d:4@0.7",
    "d:4@ebmax1.0",
    "d:4@one",
    "dv:4@one",
    "dv:2@0.5",
    "auto",
    "",
)
_LOSSLESS = ("ar", "s:", "dv:", "auto")
_PIECES = ("s:", "d:", "dv:", "ar", "auto", ":", "@", "one", "0.5", "-1", "8", "99999999999", "1e9", "nan", "\x00", " ")
_USUAL: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.0, 0.5, 1.0, 100.0),
    "top_p": (1.0, 0.9, 1e-9),
    "top_k": (0, 1, 5, 260),
    "min_p": (0.0, 0.1, 1.0),
    "logit_bias": ({}, {65: 5.0}, {10: -1e9}),
    "banned_bytes": (b"", b"ab", b"\x00\xff"),
    "seed": (None, 0, 1, 2**32),
    "stop": ((), b"a", "é", [b"\n", "x"], [b"ab", b"abc"]),
    "stop_at_eos": (True, False),
    "logprobs": (False, True),
}


class Requests(MakesRecipes):
    """Asks one runtime for texts; a refusal must not change the next text."""

    name = "requests"
    summary = "arguments of generation of every kind and size: one error, or the bytes of `ar`"

    def __init__(self) -> None:
        self._runtime: BltRuntime | None = None
        self._known = b""
        """What `_runtime` writes before any refusal."""

    def recipe(self, rng: random.Random, fixtures: Path) -> Recipe:
        """Choose arguments: usual ones, up to three of them strange."""
        options: dict[str, Any] = {"method": self._method(rng)}
        for name in rng.sample(tuple(_USUAL), rng.choice((0, 0, 1, 2, 3))):
            usual = rng.choice(_USUAL[name])
            options[name] = usual if rng.random() < 0.5 else self._strange(rng, usual)
        recipe: Recipe = {"prompt": self._prompt(rng), "count": rng.choice((0, 1, 5, 8, 20, 60)), "options": options}
        if rng.random() < 0.2:
            recipe["count"] = strange_value(rng)
        if rng.random() < 0.05:
            options[rng.choice(("methods", "", "max_bytes"))] = 1
        return _as_json(recipe)

    def run(self, recipe: Recipe, place: Place) -> Counts:
        """Generate, and compare with `ar` where the method must write the same."""
        if self._runtime is None:
            bundle = place.fixtures / BUNDLE
            self._runtime = BltRuntime.from_pretrained(bundle, provider="cpu", max_bytes=_MAX_BYTES, threads=1)
            self._known = self._runtime.generate(b"abc", 4, method="s:4").data
        runtime, wanted = self._runtime, _from_json(recipe)
        prompt, count, options = wanted["prompt"], wanted["count"], wanted["options"]
        judge = Judge()
        found = judge.call(runtime.generate, prompt, count, **options, plain=True)
        if found is not None and count is not None and len(found.data) > count:
            judge.fail("wrong bytes", f"found {len(found.data)} bytes, expected at most {count}")
        method = options.get("method") or "auto"
        greedy = options.get("temperature", 0) == 0
        if found is not None and greedy and isinstance(method, str) and method.startswith(_LOSSLESS):
            same = runtime.generate(prompt, count, **{**options, "method": "ar"})
            if same.data != found.data:
                judge.fail("wrong bytes", f"{method}: found {found.data!r}, expected {same.data!r}")
        if found is None:
            first = judge.call(runtime.generate, b"abc", 4, method="ar")
            if first is None or first.data != self._known:
                judge.fail("wrong bytes", "the text after a refusal is another one")
        return judge.result()

    def _method(self, rng: random.Random) -> Any:
        kind = rng.random()
        if kind < 0.75:
            return rng.choice(_METHODS) or None
        return "".join(rng.choices(_PIECES, k=rng.randrange(1, 5))) if kind < 0.95 else strange_value(rng)

    def _prompt(self, rng: random.Random) -> Any:
        kind = rng.random()
        if kind < 0.4:
            return rng.randbytes(rng.choice((0, 1, 2, 30, 100, 200, 300)))
        if kind < 0.7:
            return "".join(rng.choices("the quick é\n\x00😀", k=rng.randrange(60)))
        if kind < 0.9:
            return {"ids": [rng.choice((1, 1, 0, 2, 3, 4, 259, 260, -1, 2**40)), *rng.choices(range(260), k=5)]}
        return strange_value(rng)

    def _strange(self, rng: random.Random, usual: Any) -> Any:
        if isinstance(usual, bytes) or (isinstance(usual, tuple | list) and rng.random() < 0.5):
            return rng.choice(("", b"", [b""], [""], [5], 5, [b"x"] * 2000, b"x" * 100_000, "\ud800", [[b"x"]]))
        return near(rng, usual) if rng.random() < 0.6 else strange_value(rng)


def _as_json(value: Any) -> Any:
    """Return arguments in JSON types."""
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, tuple | list):
        return [_as_json(each) for each in value]
    if isinstance(value, dict):
        keyed = all(isinstance(key, str) for key in value)
        return {k: _as_json(v) for k, v in value.items()} if keyed else {"$items": [[k, v] for k, v in value.items()]}
    return value


def _from_json(value: Any) -> Any:
    """Return the arguments that `_as_json` wrote."""
    value = plain(value)
    if isinstance(value, list):
        return [_from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$bytes": text}:
            return bytes.fromhex(text)
        case {"$items": items}:
            return dict(items)
        case {"ids": ids}:
            return np.array(ids, dtype=np.int64)
    return {key: _from_json(each) for key, each in value.items()}
