"""Lets the texts of an audit grow: one after the other, or many of them together.

Texts that grow together meet in every way that serving knows. Their prompts differ in length. They begin in different
rounds, so that they also end in different ones where every round is a byte, and each that ends is followed by another.
In every other group of texts all methods grow side by side; in the others one method at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.batching.together import generate_together
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Prompt
from fastblt.runtime.methods import Method

Candidate = tuple[BltRuntime, Method]
#: Rounds in which the first texts begin, an equal part of them in each.
_FIRST_ROUNDS = 8
#: Texts in a group, for each stream: a few at least begin while others grow.
_TEXTS_PER_STREAM = 2


@dataclass(frozen=True)
class Grown:
    """Holds a text that a candidate has written."""

    candidate: int
    """Index of the candidate."""
    prompt: int
    """Index of the prompt in its group."""
    data: bytes
    alone: Callable[[], bytes] | None = None
    """Writes the same text alone; None: it grew alone."""


class Growth(Protocol):
    """Lets every candidate write a text after every prompt of a group."""

    group: int
    """Prompts in a group."""

    def texts(self, candidates: Sequence[Candidate], prompts: Sequence[Prompt], max_new_bytes: int) -> Iterator[Grown]:
        """Yield the texts after a group of prompts, greedily written."""
        ...


class OneByOne:
    """Lets one text grow after the other."""

    group = 1

    def texts(self, candidates: Sequence[Candidate], prompts: Sequence[Prompt], max_new_bytes: int) -> Iterator[Grown]:
        """Implement `Growth.texts`."""
        for index, prompt in enumerate(prompts):
            for candidate, (runtime, method) in enumerate(candidates):
                yield Grown(candidate, index, runtime.generate(prompt, max_new_bytes, method=method).data)


class Together:
    """Lets up to so many texts of one runtime grow at once.

    Args:
        runtime: of all candidates.
        streams: most texts at once; the runtime has to have room for them.

    Raises:
        CapacityError: there is no memory for calls that so many share.
    """

    def __init__(self, runtime: BltRuntime, streams: int) -> None:
        self.group = _TEXTS_PER_STREAM * streams
        self._scheduler = RoundScheduler(runtime.backend, streams)
        self._groups = 0

    @property
    def alone_because(self) -> str:
        """Return why texts share no calls; empty: they do."""
        return self._scheduler.alone_because

    def close(self) -> None:
        """Let go of the memory."""
        self._scheduler.close()

    def texts(self, candidates: Sequence[Candidate], prompts: Sequence[Prompt], max_new_bytes: int) -> Iterator[Grown]:
        """Implement `Growth.texts`."""
        places = [(index, candidate) for index in range(len(prompts)) for candidate in range(len(candidates))]
        passes = [places]
        if self._groups % 2:
            passes = [[place for place in places if place[1] == candidate] for candidate in range(len(candidates))]
        self._groups += 1
        for wanted in passes:
            yield from self._grow(candidates, prompts, max_new_bytes, wanted)

    def _grow(
        self,
        candidates: Sequence[Candidate],
        prompts: Sequence[Prompt],
        max_new_bytes: int,
        wanted: Sequence[tuple[int, int]],
    ) -> Iterator[Grown]:
        """Yield the texts of some prompts and candidates, by their indices, after all of them have grown."""
        streams, alone = [], []
        for index, candidate in wanted:
            runtime, method = candidates[candidate]
            streams.append(partial(runtime.stream, prompts[index], max_new_bytes, method=method))
            alone.append(partial(_write, runtime, prompts[index], max_new_bytes, method))
        found = generate_together(self._scheduler, streams, beginning=-(-self._scheduler.size // _FIRST_ROUNDS))
        for (index, candidate), text, again in zip(wanted, found, alone, strict=True):
            yield Grown(candidate, index, text.data, again)


def _write(runtime: BltRuntime, prompt: Prompt, max_new_bytes: int, method: Method) -> bytes:
    return runtime.generate(prompt, max_new_bytes, method=method).data
