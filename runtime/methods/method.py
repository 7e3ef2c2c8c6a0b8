"""Defines a decoding method: rounds of tokens over a session."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple, Protocol, cast

from fastblt.models.config import BltConfig
from fastblt.runtime.grammar.matcher import Matcher
from fastblt.runtime.sequence.requests import Request, Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

#: How a byte came about: by a decoder row of its own; drafted and verified; put by verification in place of a rejected
#: draft; after a draft that was accepted whole; denoised in a block, without verification; forced by a grammar.
Origin = Literal["sampled", "accepted", "corrected", "free", "denoised", "forced"]


class MethodError(ValueError):
    """Reports a method that does not exist, has a bad argument, or cannot run on a model."""


class Round(NamedTuple):
    """Holds the tokens that one round appended to the session; the last of them, at least, is not scored."""

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    rejected: tuple[int, ...] = ()
    """Drafted tokens that verification threw away."""
    drafted: int = 0
    """Tokens drafted for verification in this round, without those that a grammar forces."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of the model's probability of each of ``tokens``; empty where `Sampler.logprobs` is off."""

    @property
    def accepted(self) -> int:
        """Return the number of drafted tokens that verification kept."""
        return self.drafted - len(self.rejected)


class Method(Protocol):
    """Appends tokens to a session, round by round.

    It asks for what the model computes by requests (`fastblt.runtime.sequence.requests`), so that the rounds of many
    sequences can share the calls.
    Each method has a file of its own, which ends with its `MethodEntry`; `fastblt.runtime.methods.registry` lists them.
    It may also define `Replayable.replay_profile` and `Unmasking`.
    """

    @property
    def name(self) -> str:
        """Return the complete name, e.g. ``s:8``."""
        ...

    @property
    def lossless(self) -> bool:
        """Return whether the bytes are those of the autoregressive method (greedy), or distributed alike (sampled)."""
        ...

    def check(self, config: BltConfig) -> None:
        """Raise `MethodError` where the method cannot run on a model."""
        ...

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        """Yield rounds, without end: each appends tokens to the session; the first one scores the prompt.

        The next round is asked for when the one before it has been run to its end.
        """
        ...


def steps_of(method: Method, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
    """Return the rounds of a method, to be run one after the other.

    Raises:
        MethodError: the method yields something else; by a round: it asks for something that is no request.
    """
    for steps in method.rounds(session, sampler):
        if not isinstance(steps, Generator):
            found = type(steps).__name__
            raise MethodError(
                f"method {method.name!r}: found a {found} among its rounds, expected generators of requests "
                "(docs/decoding.md)"
            )
        yield _checked(method, steps) if sampler.matcher is None else _walked(method, steps, sampler.matcher)


def _walked(method: Method, steps: Steps[Round], matcher: Matcher) -> Steps[Round]:
    """Run a round; refuse it unless it has walked the grammar along its tokens."""
    before = matcher.length
    found = yield from _checked(method, steps)
    if (walked := matcher.length - before) != len(found.tokens):
        raise MethodError(
            f"method {method.name!r}: found {walked} tokens that the grammar has read, expected the "
            f"{len(found.tokens)} of the round; the method does not call Sampler.advance"
        )
    return found


def _checked(method: Method, steps: Steps[Round]) -> Steps[Round]:
    """Run a round; whatever it yields that is no request is refused where it has yielded it."""
    try:
        request = next(steps)
        while True:
            try:
                if not isinstance(request, Request):
                    raise MethodError(
                        f"method {method.name!r}: found a {type(request).__name__} among its requests, expected "
                        "ScoreRequest, DraftRequest or DenoiseRequest (docs/decoding.md)"
                    )
                answer = yield request
            except BaseException as error:
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as end:
        return cast("Round", end.value)
    finally:
        steps.close()


def rounds_of(method: Method, session: Session, sampler: Sampler) -> Iterator[Round]:
    """Run the rounds of a method, one after the other, without end."""
    for steps in steps_of(method, session, sampler):
        yield session.run(steps)
