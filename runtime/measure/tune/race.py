"""Races contenders on the clock: rounds of paired measurements, in which the clearly slower ones drop out.

In each round every contender that is left is measured once on the same prompt, one right after the other, and the
order rotates. Two contenders are compared by the *median* of their per-round ratios: the drift of a busy machine and
the difficulty of a prompt meet both alike, and a burst of other work spoils one ratio only. A contender drops out when
the median is worse than the leader's by more than chance explains.

Why a race and not successive halving: halving drops half of the contenders after each rung, whatever the noise is, so
that nearly equal ones are lost to chance, while hopeless ones are measured until their rung is over. Here the first
rounds drop what is far behind, and the time that is left goes to those that are hard to tell apart.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastblt.runtime.measure.rotation import rotated

C = TypeVar("C", bound=Hashable)

#: Rounds before anybody drops out.
FEWEST_ROUNDS = 5
#: Standard errors by which a contender has to be slower to drop out. Each is tested after every round, so that a value
#: for a single test (2) would drop equals too often.
_SURE = 3.0
#: Least relative spread of a ratio between rounds that is believed: a few equal ones may be chance.
_LEAST_SPREAD = 0.04
#: A race ends when, very likely (2 standard errors), no other contender is faster than the leader by more than this.
TOLERANCE = 0.01
#: Of a normal distribution: the standard error of a median, in units of that of a mean; the standard deviation in units
#: of the median absolute deviation, which is less in small samples: by n / (n - 0.8) (Croux and Rousseeuw, 1992).
_MEDIAN_ERROR, _NORMAL_MAD, _SMALL_SAMPLE = 1.2533, 1.4826, 0.8


@dataclass(frozen=True)
class Standing(Generic[C]):
    """Holds what a race found about a contender."""

    contender: C
    rounds: int
    """In which it was measured."""
    ratio: float
    """Median over those rounds of its time divided by its leader's in the same round; 1 for the leader itself."""
    seconds_per_byte: float
    """The leader's, the median over all rounds, times ``ratio``."""
    dropped: bool
    """Whether it was clearly slower than its leader."""


class Race(Generic[C]):
    """Holds the times of all contenders.

    Args:
        contenders: at least one.
        group: returns what a contender is compared within; each group has a leader of its own.
    """

    def __init__(self, contenders: Sequence[C], group: Callable[[C], Hashable] = lambda contender: None) -> None:
        self.rounds = 0
        self.left = list(dict.fromkeys(contenders))
        """Those that have not dropped out."""
        self._group = group
        self._logs: dict[C, list[float]] = {contender: [] for contender in self.left}
        """Logarithms of the seconds per byte of each round, from the first one on."""

    def run(
        self,
        measure: Callable[[C, int], float],
        deadline: float,
        clock: Callable[[], float],
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        """Run rounds until nothing is left to find out, or the next round would not end before the deadline.

        The first round is broken off at the deadline; what it has not reached drops out unmeasured.

        Args:
            measure: returns the seconds per byte, > 0, of a contender in the round of this number.
            deadline: on the clock.
            clock: returns seconds.
            on_round: called after each round.
        """
        expected = 0.0
        while self.rounds == 0 or (not self.settled() and clock() + expected <= deadline):
            began, before = clock(), len(self.left)
            for contender in rotated(self.left, self.rounds):
                if self.rounds == 0 and clock() >= deadline and self._measured():
                    break
                self._logs[contender].append(math.log(measure(contender, self.rounds)))
            self.rounds += 1
            self.left = [each for each in self.left if len(self._logs[each]) == self.rounds]
            self._drop()
            warming_up = 0.5 if self.rounds == 1 else 1.0
            expected = warming_up * (clock() - began) * len(self.left) / before
            on_round()

    def _measured(self) -> bool:
        return any(self._logs.values())

    def leaders(self) -> dict[Hashable, C]:
        """Return the fastest contender of each group, by group; a group of which none was measured has none."""
        rivals: dict[Hashable, list[C]] = {}
        for contender in self.left:
            rivals.setdefault(self._group(contender), []).append(contender)
        return {group: self._fastest(contenders) for group, contenders in rivals.items()}

    def _fastest(self, rivals: Sequence[C]) -> C:
        """Return who is fastest against the mean of all, or, step by step, whoever beats that one directly."""
        centers = [statistics.fmean(times) for times in zip(*(self._logs[each] for each in rivals), strict=True)]
        found = self._fastest_against(centers, rivals)
        for _ in rivals:  # medians need not be transitive: no more steps than rivals
            best = self._fastest_against(self._logs[found], rivals)
            if _median_difference(self._logs[best], self._logs[found]) >= 0:
                break
            found = best
        return found

    def _fastest_against(self, logs: Sequence[float], rivals: Sequence[C]) -> C:
        return min(rivals, key=lambda each: _median_difference(self._logs[each], logs))

    def ratio(self, contender: C, other: C) -> float:
        """Return the median ratio of two contenders' times in the rounds of both, each of which was measured."""
        return math.exp(_median_difference(self._logs[contender], self._logs[other]))

    def standings(self) -> list[Standing[C]]:
        """Return the contenders that were measured: group by group, those that are left first, the fastest first."""
        found, leaders = [], self.leaders()
        groups = list(dict.fromkeys(map(self._group, self._logs)))
        for contender, logs in self._logs.items():
            leader = leaders.get(self._group(contender))
            if not logs or leader is None:
                continue
            ratio = self.ratio(contender, leader)
            seconds = math.exp(statistics.median(self._logs[leader])) * ratio
            found.append(Standing(contender, len(logs), ratio, seconds, contender not in self.left))
        # What dropped out late was compared more often, and is nearer to the leader than a ratio of few rounds tells.
        return sorted(found, key=lambda s: (groups.index(self._group(s.contender)), s.dropped, s.ratio))

    def settled(self) -> bool:
        """Return whether more rounds would hardly find a faster contender than the leaders."""
        comparisons = self._comparisons()
        return self.rounds >= FEWEST_ROUNDS and all(
            slower - 2 * error > -math.log1p(TOLERANCE) for slower, error in comparisons.values()
        )

    def _drop(self) -> None:
        """Take out whatever is clearly slower than its leader."""
        if self.rounds >= FEWEST_ROUNDS:
            comparisons = self._comparisons()
            slow = {each for each, (slower, error) in comparisons.items() if slower > _SURE * error}
            self.left = [each for each in self.left if each not in slow]

    def _comparisons(self) -> dict[C, tuple[float, float]]:
        """Return how much slower than its leader each other contender is that is left, and the error of that.

        Both are of the logarithm of the ratio. A few rounds of a contender may be alike by chance: its spread counts as
        no less than the mean over all, because noise is the machine's.
        """
        leaders = self.leaders()
        pairs = ((each, leaders[self._group(each)]) for each in self.left)
        found = {each: _differences(self._logs[each], self._logs[other]) for each, other in pairs if each != other}
        if not found:
            return {}
        spreads = {each: _spread(differences) for each, differences in found.items()}
        least = max(_LEAST_SPREAD, statistics.fmean(spreads.values()))
        error = _MEDIAN_ERROR / math.sqrt(self.rounds)
        return {
            each: (statistics.median(differences), error * max(least, spreads[each]))
            for each, differences in found.items()
        }


def _differences(logs: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the differences in the rounds of both."""
    return [a - b for a, b in zip(logs, others, strict=False)]


def _median_difference(logs: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(_differences(logs, others))


def _spread(differences: Sequence[float]) -> float:
    """Return a standard deviation that outliers do not change."""
    middle = statistics.median(differences)
    deviation = statistics.median(abs(each - middle) for each in differences)
    return _NORMAL_MAD * deviation * len(differences) / (len(differences) - _SMALL_SAMPLE)
