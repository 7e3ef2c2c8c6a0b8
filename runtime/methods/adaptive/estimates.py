"""Estimates what adaptive decoding needs to know: chances that drafts are kept, seconds per row and per byte.

Every estimate forgets: newer observations weigh more, so that it follows the text and the machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

#: Bounds between classes of a drafter's top probability.
_PROBABILITY = (0.2, 0.4, 0.6, 0.8, 0.95)
#: Bounds between classes of the highest entropy of a draft so far, in units of the patching threshold.
_SURPRISE = (0.5, 0.8, 1.1)


class Acceptance:
    """Estimates the chance that verification keeps a drafted byte, given that it keeps those before it.

    Two things predict it: the drafter's top probability, and whether the draft has passed a patch end. Up to there
    the drafter reads the latent that verification reads; behind it, one that is out of date. Only the patcher knows
    where patches end, but it ends them where entropy is high, and the drafter's own entropy is high there too.

    Args:
        threshold: the patcher's, nats.
        forget: part of a class's evidence that a new observation replaces.
        prior: observations that the drafter's own probability counts as at the start.
    """

    def __init__(self, threshold: float, forget: float = 0.02, prior: float = 2.0) -> None:
        self._bounds = [threshold * part for part in _SURPRISE]
        self._keep = 1.0 - forget
        self._columns = len(_PROBABILITY) + 1
        edges = (0.0, *_PROBABILITY, 1.0)
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        rows = len(_SURPRISE) + 2
        self._seen = [prior] * (rows * self._columns)
        self._kept = [prior * middle for middle in middles] * rows
        self.mean = 0.7
        """Chance over all drafted bytes whose predecessors were kept."""

    def classify(self, probability: float, surprise: float, at_limit: bool) -> int:
        """Return the class of a drafted byte.

        Args:
            probability: the drafter's top probability.
            surprise: highest entropy of the draft so far, this byte's row included, nats.
            at_limit: the patch that was open before the draft has reached its longest length.
        """
        row = len(_SURPRISE) + 1 if at_limit else bisect_right(self._bounds, surprise)
        return row * self._columns + bisect_right(_PROBABILITY, probability)

    def chance(self, kind: int) -> float:
        """Return the chance of a byte of a class."""
        return self._kept[kind] / self._seen[kind]

    def observe(self, kinds: Sequence[int], kept: int) -> None:
        """Learn from a draft of which the first ``kept`` bytes stayed; bytes after the first failure are ignored."""
        keep = self._keep
        for index, kind in enumerate(kinds[: kept + 1]):
            good = float(index < kept)
            self._seen[kind] = self._seen[kind] * keep + 1.0
            self._kept[kind] = self._kept[kind] * keep + good
            self.mean += (1.0 - keep) * (good - self.mean)


class LinearCost:
    """Estimates the seconds of a call as ``fixed + each * rows``, by least squares with forgetting."""

    def __init__(self, forget: float = 0.02) -> None:
        self._keep = 1.0 - forget
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn that a call of some rows took some time."""
        k = self._keep
        self._n = self._n * k + 1.0
        self._x = self._x * k + rows
        self._y = self._y * k + seconds
        self._xx = self._xx * k + rows * rows
        self._xy = self._xy * k + rows * seconds

    @property
    def each(self) -> float:
        """Return the seconds of one more row; 0 until calls of different sizes have been seen."""
        spread = self._n * self._xx - self._x * self._x
        if spread <= 1e-9 * self._xx:
            return 0.0
        return max(0.0, (self._n * self._xy - self._x * self._y) / spread)

    @property
    def mean(self) -> float:
        """Return the seconds per row, fixed costs included; 0 before the first call."""
        return self._y / self._x if self._x else 0.0


class Pace:
    """Estimates seconds per byte over the last rounds.

    Args:
        cold: first rounds that do not count, since new sizes of calls are slow the first time.
        trial: rounds after those until the pace counts as known.
        forget: part of the evidence that a new round replaces.
    """

    def __init__(self, cold: int = 2, trial: int = 6, forget: float = 0.01) -> None:
        self._keep = 1.0 - forget
        self._seconds = self._bytes = 0.0
        self._missing = trial
        self._cold = cold

    def observe(self, seconds: float, count: int) -> None:
        """Learn that a round took some time and yielded ``count`` bytes."""
        if self._cold:
            self._cold -= 1
            return
        self._missing -= 1
        self._seconds = self._seconds * self._keep + seconds
        self._bytes = self._bytes * self._keep + count

    @property
    def known(self) -> bool:
        """Return whether enough rounds have been observed."""
        return self._missing <= 0

    @property
    def seconds_per_byte(self) -> float:
        """Return the seconds per byte; 0 until a round has been observed."""
        return self._seconds / self._bytes if self._bytes else 0.0
