"""Parses ``--replay``: the rates at which a benchmark drives the control flow of each method.

Items are comma-separated; a later item wins over an earlier one, one for a method over one for all:

* ``acceptance=0.91``: part of the drafted bytes that verification keeps (``s``, ``dv``); for ``auto``, which chooses
  its draft lengths itself, the chance of each byte given that those before it are kept.
* ``steps=2.92``: decoder calls per block (``d``, ``dv``; rule ``one`` always takes 1).
* ``patch=2.05``: mean of the bytes per patch, the same for all methods; 4 by default.
* ``METHOD/acceptance=...`` or ``METHOD/steps=...``: for that method alone, such as ``s:16/acceptance=0.77``.
* ``paper``: the figures of `fastblt.runtime.measure.replay.paper` (arXiv 2605.08044), also for a method that differs
  from the paper's in options only (``dv:8@one+partial``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field

from fastblt.models.config import BltConfig
from fastblt.runtime.measure.replay.paper import POINT_PATCH, operating_point
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.replay_profile import (
    ACCEPTANCE,
    STEPS,
    ReplayError,
    ReplayProfile,
    profile_of,
    rate_for,
)

PATCH = "patch"
_FORM = "expected paper, or acceptance=A, steps=S or patch=P, the first two also as METHOD/KEY=VALUE"
_PAPER_NAME = "paper"
_DEFAULT_PATCH = 4.0
#: Lowest and highest value, in words too; how high steps and patch really may be depends on the method and the model.
_RANGES = {
    ACCEPTANCE: (0.0, 1.0, "a number in 0..1"),
    STEPS: (1.0, 1e6, "a number >= 1"),
    PATCH: (1.0, 1e6, "a number >= 1"),
}


@dataclass(frozen=True)
class ReplayRates:
    """Holds a parsed ``--replay``."""

    text: str
    """As the user wrote it."""
    patch: float = _DEFAULT_PATCH
    general: dict[str, float] = field(default_factory=dict)
    by_method: dict[str, dict[str, float]] = field(default_factory=dict)
    paper: bool = False

    @classmethod
    def parse(cls, text: str, measured: Collection[str]) -> ReplayRates:
        """Parse the syntax that the module describes.

        Args:
            text: as the user gave it.
            measured: names of the methods that are measured; no item may be about another one.

        Raises:
            ReplayError: it is malformed; the message quotes the item.
        """
        patch, paper = _DEFAULT_PATCH, False
        general: dict[str, float] = {}
        by_method: dict[str, dict[str, float]] = {}
        for item in text.split(","):
            if item.strip() == _PAPER_NAME:
                patch, paper = POINT_PATCH, True
                continue
            method, key, value = _parse_item(item.strip())
            if method and (key == PATCH or method not in measured):
                raise ReplayError(
                    f"--replay: found {item.strip()!r}, expected acceptance or steps of one of {', '.join(measured)}"
                )
            if key == PATCH:
                patch = value
            elif method:
                by_method.setdefault(method, {})[key] = value
            else:
                general[key] = value
        return cls(text, patch, general, by_method, paper)

    def own(self, method: str, key: str) -> float | None:
        """Return what was given for one method alone."""
        return self.by_method.get(method, {}).get(key)

    def published(self, method: str, key: str) -> float | None:
        """Return the paper's figure for a method, where the paper's figures were asked for."""
        point = operating_point(method) if self.paper else None
        return None if point is None else {ACCEPTANCE: point.acceptance, STEPS: point.steps}[key]

    def needed(self, method: str, key: str) -> float:
        """Return the rate that holds for a method.

        Raises:
            ReplayError: there is none.
        """
        value = self.value(method, key)
        if value is None:
            raise ReplayError(f"--replay: found no {key} for {method}, expected {key}=VALUE or {method}/{key}=VALUE")
        return value

    def value(self, method: str, key: str) -> float | None:
        """Return what holds for a method; None where nothing was given."""
        for found in (self.own(method, key), self.published(method, key)):
            if found is not None:
                return found
        return self.general.get(key)

    def profile(self, name: str, config: BltConfig) -> ReplayProfile:
        """Return how a method is driven on a model.

        Raises:
            MethodError: no such method.
            ReplayError: the method cannot be replayed, a figure is missing, or no generation can show it.
        """
        longest = config.patching.max_patch_length or _LONGEST
        if self.patch > longest:
            raise ReplayError(f"--replay: found patch={self.patch:g}, expected at most {longest}, the longest patch")
        method = parse_method(name)
        found = profile_of(method, method.name, self, config)
        return dataclasses.replace(found, patch_rate=rate_for(self.patch - 1, longest - 1), patch=self.patch)


#: Stands for "no limit" of a patch's length.
_LONGEST = 512


def _parse_item(item: str) -> tuple[str, str, float]:
    left, _, text = item.partition("=")
    method, _, key = left.rpartition("/")
    if key not in _RANGES:
        raise ReplayError(f"--replay: found {item!r}, {_FORM}")
    low, high, words = _RANGES[key]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ReplayError(f"--replay: found {item!r}, expected {words} after {key}=")
    return method, key, value
