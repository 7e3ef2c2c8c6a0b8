"""Estimates what adaptive decoding needs to know: chances that drafts are kept, seconds per row and per byte.

Every estimate forgets: newer observations weigh more, so that it follows the text and the machine. All sequences of a
model share them: a lock keeps observations apart, and numbers that belong together are replaced together, so that
whoever reads them needs no lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from threading import Lock

#: Bounds between classes of a drafter's top probability.
_PROBABILITY = (0.2, 0.4, 0.6, 0.8, 0.95)
#: Bounds between classes of the highest entropy of a draft so far, in units of the patching threshold.
_SURPRISE = (0.5, 0.8, 1.1)
#: Times above this many usual ones count as that.
_UNUSUAL = 3.0
#: Times until the usual one follows the newest, and observations that it is a mean of.
_FIRST = 12
#: What is left of the evidence of a pace that is in doubt.
_DOUBTED = 0.25


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
        self._evidence = [(prior, prior * middle) for middle in middles] * rows
        """Of each class: the weight of its bytes, and of those that were kept."""
        self._observing = Lock()
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
        seen, kept = self._evidence[kind]
        return kept / seen

    def observe(self, kinds: Sequence[int], kept: int) -> None:
        """Learn from a draft of which the first ``kept`` bytes stayed; bytes after the first failure are ignored."""
        keep = self._keep
        with self._observing:
            for index, kind in enumerate(kinds[: kept + 1]):
                good = float(index < kept)
                weight, kept_weight = self._evidence[kind]
                self._evidence[kind] = (weight * keep + 1.0, kept_weight * keep + good)
                self.mean += (1.0 - keep) * (good - self.mean)


class LinearCost:
    """Estimates the seconds of a call as ``fixed + each * rows``, by least squares with forgetting.

    Times far above the usual one count as `_UNUSUAL` times that: the machine did something else meanwhile, and what
    looks too expensive may never be tried again.
    """

    def __init__(self, forget: float = 0.02) -> None:
        self._keep = 1.0 - forget
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        """Weights of calls: n, x, y, xx, xy with x for rows and y for seconds."""
        self._usual = Usual()
        self._observing = Lock()

    def observe(self, rows: int, seconds: float) -> None:
        """Learn that a call of some rows took some time."""
        with self._observing:
            known = self._usual.read(rows, seconds)
            sums = (0.0, 0.0, 0.0, 0.0, 0.0) if len(known) > 1 else self._sums
            for x, y in known:
                sums = self._added(sums, x, y)
            self._sums = sums

    def _added(self, sums: tuple[float, ...], x: int, y: float) -> tuple[float, float, float, float, float]:
        """Return the sums with one more call."""
        k = self._keep
        n, sum_x, sum_y, sum_xx, sum_xy = sums
        return n * k + 1.0, sum_x * k + x, sum_y * k + y, sum_xx * k + x * x, sum_xy * k + x * y

    @property
    def each(self) -> float:
        """Return the seconds of one more row; 0 until calls of different sizes have been seen."""
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if spread <= 1e-9 * xx:
            return 0.0
        return max(0.0, (n * xy - x * y) / spread)

    @property
    def fixed(self) -> float:
        """Return the seconds of a call that do not depend on its rows; 0 before the first call."""
        n, x, y, _, _ = self._sums
        return max(0.0, (y - self.each * x) / n) if n else 0.0

    @property
    def mean(self) -> float:
        """Return the seconds per row, fixed costs included; 0 before the first call."""
        _, x, y, _, _ = self._sums
        return y / x if x else 0.0


class Pace:
    """Estimates seconds per byte over the last rounds; rounds that take unusually long count as in `LinearCost`.

    Args:
        cold: first rounds that do not count, since new sizes of calls are slow the first time.
        trial: rounds after those until the pace counts as known.
        forget: part of the evidence that a new round replaces.
    """

    def __init__(self, cold: int = 2, trial: int = 6, forget: float = 0.01) -> None:
        self._keep = 1.0 - forget
        self._sums = (0.0, 0.0)
        """Weights of rounds: seconds, bytes."""
        self._usual = Usual()
        self._missing = trial
        self._cold = cold
        self._observing = Lock()

    def observe(self, seconds: float, count: int) -> None:
        """Learn that a round took some time and yielded ``count`` bytes."""
        with self._observing:
            if self._cold:
                self._cold -= 1
                return
            known = self._usual.read(count, seconds)
            all_seconds, all_bytes = (0.0, 0.0) if len(known) > 1 else self._sums
            for byte_count, taken in known:
                all_seconds, all_bytes = all_seconds * self._keep + taken, all_bytes * self._keep + byte_count
            self._sums = (all_seconds, all_bytes)
            self._missing -= 1  # after the sums: a pace that is known is a number

    def doubt(self) -> None:
        """Let what is known weigh less: it is long ago, and the next rounds are to show whether it still holds."""
        with self._observing:
            self._usual.settle()
            all_seconds, all_bytes = self._sums
            self._sums = (_DOUBTED * all_seconds, _DOUBTED * all_bytes)

    @property
    def known(self) -> bool:
        """Return whether enough rounds have been observed."""
        return self._missing <= 0

    @property
    def seconds_per_byte(self) -> float:
        """Return the seconds per byte; 0 until a round has been observed."""
        seconds, count = self._sums
        return seconds / count if count else 0.0


class Usual:
    """Limits times to what is usual: `_UNUSUAL` times the median of the first ones, later of a running mean."""

    def __init__(self) -> None:
        self._first: list[tuple[int, float]] = []
        self._mean = 0.0
        self._settled = False

    def settle(self) -> None:
        """Let the times so far decide what is usual, however few they are; none: the next ones do."""
        self._settled = bool(self._first)

    def read(self, size: int, seconds: float) -> list[tuple[int, float]]:
        """Return what is to be learned from one more time: sizes and limited times.

        It is a single pair, the new one, or all from the beginning, as long as these are few: what is usual is not
        known from the first one.
        """
        if self._settled or len(self._first) >= _FIRST:
            limited = min(seconds, _UNUSUAL * self._mean)
            self._mean += (limited - self._mean) / _FIRST
            return [(size, limited)]
        self._first.append((size, seconds))
        self._mean = median(each for _, each in self._first)
        return [(known, min(each, _UNUSUAL * self._mean)) for known, each in self._first]
