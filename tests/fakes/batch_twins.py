"""Runs sequences in a batch, and each of them a second time alone, and compares all that they return and hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fastblt.models.tokens import EOS_ID, MASK_ID
from fastblt.runtime.backends.batching import (
    Batch,
    DecoderCall,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.protocol import Backend, DecoderRows, Pick
from fastblt.runtime.sequence.parts import Calls
from fastblt.runtime.sequence.requests import DenoiseRequest, DraftRequest, Request, ScoreRequest
from fastblt.runtime.sequence.session import Session

_ORDER = (PatcherCall, EncoderCall, GlobalCall, DraftCall, DecoderCall)


class Twins:
    """Holds a session whose calls a batch makes, and one of the same text that makes its own.

    Args:
        backend: of both.
        tolerance: largest difference of numbers; 0: equal to the bit.
    """

    def __init__(self, backend: Backend, tolerance: float = 0.0) -> None:
        self.shared, self.alone = Session(backend), Session(backend)
        self.tolerance = tolerance

    def append(self, tokens: Sequence[int]) -> None:
        """Put tokens at the end of both."""
        self.shared.append(tokens)
        self.alone.append(tokens)

    def rewind(self, length: int) -> None:
        """Forget the tokens of both from a position on."""
        self.shared.rewind(length)
        self.alone.rewind(length)

    def close(self) -> None:
        """End both."""
        self.shared.close()
        self.alone.close()

    def answer(self, request: Request, same: Request) -> None:
        """Let both answer a request alone, and compare the answers."""
        self.compare(self.shared.answer(request), self.alone.answer(same))

    def compare(self, found: Any, expected: Any) -> None:
        """Compare what the shared session returned or holds with what the other did."""
        if isinstance(expected, tuple | list):
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                self.compare(one, other)
        elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f" and self.tolerance:
            np.testing.assert_allclose(found, expected, rtol=0, atol=self.tolerance)
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        elif not isinstance(expected, float):  # seconds
            assert found == expected

    def compare_states(self) -> None:
        """Compare all that both would save."""
        found, expected = self.shared.saved(), self.alone.saved()
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.patch_ends == expected.patch_ends
        assert found.progress == expected.progress
        assert found.state.keys() == expected.state.keys()
        for name, value in expected.state.items():
            self.compare(found.state[name], value)


def scored(backend: Backend, count: int, length: int) -> list[Twins]:
    """Return twins that have scored texts of random bytes alone."""
    random, found = np.random.default_rng(5), []
    for _ in range(count):
        twins = Twins(backend)
        twins.append(random.integers(4, 260, length).tolist())
        twins.answer(ScoreRequest(), ScoreRequest())
        found.append(twins)
    return found


def answer_together(batch: Batch, asked: Sequence[tuple[Twins, tuple[Request, Request]]]) -> None:
    """Let a batch answer the requests of several twins, and compare every answer with the other's own."""
    running = []
    for twins, (request, other) in asked:
        pair = twins.shared.calls(request), twins.alone.calls(other)
        running.append([twins, pair, tuple(_next(calls, None) for calls in pair)])
    while running := [each for each in running if each[2][0] is not None]:
        rank = min(_rank(twins, call) for twins, _, (call, _) in running)
        turn = [each for each in running if _rank(each[0], each[2][0]) == rank]
        answers = batch.run([(twins.shared.sequence, call) for twins, _, (call, _) in turn])
        for each, answer in zip(turn, answers, strict=True):
            twins, pair, (call, other) = each
            twins.compare(
                *(each._replace(pick=None) if isinstance(each, DraftCall) else each for each in (call, other))
            )
            expected = twins.alone.parts.alone(other)
            twins.compare(answer.result, expected)
            assert min(answer.seconds, answer.moved_bytes, answer.calls) > 0
            found = twins.shared.parts.take(call, answer)
            each[2] = _next(pair[0], found), _next(pair[1], expected)


def _next(calls: Calls[Any], result: Any) -> PartCall | None:
    try:
        return calls.send(result)
    except StopIteration:
        return None


def _rank(twins: Twins, call: PartCall) -> tuple[int, str]:
    return _ORDER.index(type(call)), call.part(twins.shared.config)


def pick_at_random(seed: int) -> Pick:
    """Return a pick that ends a draft after five bytes or so."""
    random = np.random.default_rng(seed)

    def pick(rows: DecoderRows) -> tuple[int, bool]:
        assert rows.logits.shape == (1, 260)
        return int(random.integers(4, 260)), bool(random.random() < 0.8)

    return pick


class Play:
    """Lets twins do what sequences do, at random: texts grow, are drafted, denoised, rewound, saved, leave and join.

    Some end, and others begin in their places.

    Args:
        backend: of all sequences.
        batch: of the shared ones; it may be for fewer than there are.
        count: number of twins.
        seed: of all that is random.
    """

    def __init__(self, backend: Backend, batch: Batch, count: int, seed: int, tolerance: float = 0.0) -> None:
        self.batch = batch
        self._begin = partial(Twins, backend, tolerance)
        self.twins = [self._begin() for _ in range(count)]
        self._random = np.random.default_rng(seed)
        self._block = np.full(backend.config.block_size, MASK_ID)
        self._most = backend.max_bytes - 60

    def run(self, turns: int) -> None:
        """Let some of the twins do something together, so many times."""
        random = self._random
        for _ in range(turns):
            count = int(random.integers(1, min(self.batch.size, len(self.twins)) + 1))
            acting = [self.twins[index] for index in random.permutation(len(self.twins))[:count]]
            drafting = random.random() < 0.4
            asked = [(twins, self._request(twins, drafting)) for twins in acting]
            if random.random() < 0.1:
                for twins, requests in asked:
                    twins.answer(*requests)
            else:
                answer_together(self.batch, asked)
            for twins in acting:
                self._after(twins)
            if random.random() < 0.05:
                index = int(random.integers(len(self.twins)))
                self.twins[index].close()
                self.twins[index] = self._begin()

    def _request(self, twins: Twins, drafting: bool) -> tuple[Request, Request]:
        random, session = self._random, twins.shared
        if drafting and session.scored and session.length - session.scored == 1:
            if len(self._block) and random.random() < 0.4:
                return (DenoiseRequest(self._block, with_last=True),) * 2
            seed, most = int(random.integers(1 << 30)), int(random.integers(1, 10))
            if random.random() < 0.5:
                return (DraftRequest(most, None, "closed"),) * 2
            one, other = (DraftRequest(most, pick_at_random(seed), "closed") for _ in range(2))
            return one, other
        new = random.integers(4, 260, random.choice([1, 1, 2, 3, 9, 9, 20, 40])).tolist()
        if random.random() < 0.1:
            new[0] = EOS_ID
        if session.length + len(new) > self._most:
            twins.rewind(int(random.integers(1, session.length // 2)))
        twins.append(new)
        if random.random() < 0.3:
            return (ScoreRequest(only_known=True),) * 2
        block = self._block if len(self._block) and random.random() < 0.3 else None
        return (ScoreRequest(block),) * 2

    def _after(self, twins: Twins) -> None:
        random, session = self._random, twins.shared
        if session.scored > 5 and random.random() < 0.3:
            twins.rewind(max(1, session.scored - int(random.integers(0, 8))))
        elif random.random() < 0.03:
            twins.rewind(int(random.integers(1, session.length + 1)))
        if session.length == session.scored:
            twins.append([int(random.integers(4, 260))])
        if session.scored and random.random() < 0.05:
            twins.compare_states()
        if random.random() < 0.05:
            self.batch.leave(session.sequence)
