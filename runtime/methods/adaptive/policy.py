"""Decodes adaptively: each round takes the drafter that has been fastest, and drafts as long as that pays.

The bytes do not depend on what has been learned (`drafters`, `estimates`): every round is lossless. Sampled bytes are
distributed as the autoregressive method's, but a seed does not fix them, since the clock decides how they are drafted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.adaptive.drafters import BlockDrafter, ByteDrafter, Drafter
from fastblt.runtime.methods.adaptive.lookup import LONGEST_LOOKUP, LookupDrafter
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import MethodError, Round
from fastblt.runtime.methods.prompt_lookup import History
from fastblt.runtime.methods.replay_profile import ACCEPTANCE, Rates, ReplayProfile, rate_for
from fastblt.runtime.sequence.requests import Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

#: A drafter that is not the fastest is tried once in this many rounds, and less often the slower it was, up to
#: `_RARELY` times: it may have been measured at a bad moment.
_EXPLORE, _RARELY = 32, 16


class Policy:
    """Chooses the drafter of each round, and keeps what has been learned about all of them, by any sequence."""

    def __init__(self, config: BltConfig) -> None:
        bytewise = ByteDrafter(config)
        self._drafters: list[Drafter] = [bytewise]
        self._lookup = LookupDrafter(bytewise.verification)
        if config.block_size:
            self._drafters.append(BlockDrafter(config))
        self._idle = [0] * len(self._drafters)
        self._choosing = Lock()

    def round(self, session: Session, sampler: Sampler, history: History) -> Steps[Round]:
        """Run one round of prompt lookup where that pays, else of another drafter; learn from it about both."""
        history.read(session)
        matched, looked_up = history.matched, history.continuation(LONGEST_LOOKUP)
        if count := self._worth_looking_up(matched, len(looked_up)):
            found = yield from self._lookup.round(session, sampler, looked_up[:count])
        else:
            found = yield from self._draft(session, sampler)
        self._lookup.observe(matched, looked_up, found.tokens)
        return found

    def _worth_looking_up(self, matched: int, most: int) -> int:
        """Return how many bytes to look up; none before all other drafters are known."""
        if not most or not all(drafter.pace.known for drafter in self._drafters):
            return 0
        return self._lookup.worth(matched, most, min(drafter.pace.seconds_per_byte for drafter in self._drafters))

    def _draft(self, session: Session, sampler: Sampler) -> Steps[Round]:
        """Run one round of the drafter that is fastest, or now and then of another one."""
        with self._choosing:
            chosen = self._choose()
            self._idle = [0 if index == chosen else idle + 1 for index, idle in enumerate(self._idle)]
        drafter = self._drafters[chosen]
        began = session.now()
        found = yield from drafter.round(session, sampler)
        drafter.pace.observe(session.now() - began, len(found.tokens))
        return found

    def _choose(self) -> int:
        """Return the index of a drafter: one not known yet, one that is due for another trial, or the fastest."""
        for index, drafter in enumerate(self._drafters):
            if not drafter.pace.known:
                return index
        paces = [drafter.pace.seconds_per_byte for drafter in self._drafters]
        best = min(range(len(paces)), key=paces.__getitem__)
        for index, idle in enumerate(self._idle):
            if idle > _EXPLORE * min(_RARELY, (paces[index] / paces[best]) ** 4):
                self._drafters[index].pace.doubt()
                return index
        return best


@dataclass(frozen=True)
class Adaptive:
    """Chooses drafter and draft length round by round; lossless."""

    name: str = "auto"
    lossless: bool = True

    @classmethod
    def parse(cls, argument: str) -> Adaptive:
        """Parse the argument of ``auto``: there is none."""
        if argument:
            raise MethodError(f"method 'auto:{argument}': found an argument, expected plain 'auto'")
        return cls()

    def check(self, config: BltConfig) -> None:
        """Accept every model; one without a [MASK] row drafts byte by byte only."""

    def replay_profile(self, rates: Rates, config: BltConfig) -> ReplayProfile:
        """Implement `Replayable.replay_profile`.

        Draft lengths are this method's own choice, so no acceptance can be promised. A given acceptance is the chance
        of each byte; the paper's are those of drafts of 8 bytes.
        """
        # With the open patch's latent the first byte of a block is the model's own: it is always kept.
        sure = config.block_latent == "partial"
        own = rates.own(self.name, ACCEPTANCE)
        bytewise, blockwise = rates.published("s:8", ACCEPTANCE), rates.published("dv:8@one", ACCEPTANCE)
        if own is None and bytewise is not None and blockwise is not None:
            each = rate_for(8 * bytewise, 8), rate_for(8 * blockwise - sure, 8 - sure)
        else:
            each = (rates.needed(self.name, ACCEPTANCE),) * 2
        return ReplayProfile(*each, steps=1.0, clean_drafts=not sure)

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Generate without end; the first round scores the prompt, which yields the first byte."""
        policy = session.learned.recall(Policy, lambda: Policy(session.config))
        yield sample_next(session, sampler)
        history = History()
        while True:
            yield policy.round(session, sampler, history)


ENTRY = MethodEntry(
    name="auto",
    syntax="auto",
    examples=("auto",),
    summary="chooses method and draft length as it goes, by what is fastest",
    parse=Adaptive.parse,
    needs="any model; blocks need BLT-D",
    audited=("auto",),
    benchmarked=("auto",),
    tuned=("auto",),
)
