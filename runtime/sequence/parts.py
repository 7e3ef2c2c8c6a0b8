"""Runs the parts of a model through a backend's sequence and books what each call costs."""

from __future__ import annotations

from collections.abc import Generator
from math import isfinite
from time import perf_counter
from typing import Any, TypeAlias, TypeVar, cast

from fastblt.models.config import BltConfig
from fastblt.models.tokens import VOCAB_SIZE
from fastblt.runtime.backends.batching import Answer, DecoderCall, DraftCall, PartCall
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.protocol import BackendSequence, Drafted, Ids
from fastblt.runtime.sequence.stats import RunStats

T = TypeVar("T")
#: Yields calls of parts, is sent what they return, and returns what came of it.
Calls: TypeAlias = Generator[PartCall, Any, T]
_TOKENS = frozenset(range(VOCAB_SIZE))


class CountedParts:
    """Makes a sequence's calls, or takes what a batch has answered to them; time and calls go to ``stats``.

    Args:
        sequence: that runs the parts.
        config: the model's.
        stats: where calls are counted.

    Raises:
        ValueError: by every call: an earlier one has failed, or the session is closed.
        GraphError: the decoder found a token that does not exist, or no probability.
    """

    def __init__(self, sequence: BackendSequence, config: BltConfig, stats: RunStats) -> None:
        self.sequence = sequence
        self.stats = stats
        self.failed = False
        """Whether no other call may be made: one has failed, or what the sequence holds is not to be relied on."""
        self.damaged = False
        """Whether a call has failed, and may have left anything in the caches, even NaN."""
        self._config = config

    def run(self, calls: Calls[T]) -> T:
        """Make the calls that a generator asks for, one after the other."""
        try:
            call = next(calls)
            while True:
                call = calls.send(self.alone(call))
        except StopIteration as end:
            return cast("T", end.value)

    def alone(self, call: PartCall) -> Any:
        """Make a call, and return what the method of `BackendSequence` returns."""
        if self.failed:
            self.check_usable()
        began = perf_counter()
        try:
            result = call.run(self.sequence)
            check_result(call, result)
        except BaseException:
            self.spoil()
            raise
        seconds = perf_counter() - began
        if isinstance(call, DraftCall):
            self._book_draft(call, cast("Drafted", result), seconds)
        else:
            self._book(call.part(self._config), call[0], call.rows(self._config), seconds)
        return result

    def take(self, call: PartCall, answer: Answer) -> Any:
        """Book what a batch has answered to a call, and return the result, or raise what ended it."""
        try:
            if answer.error is not None:
                raise answer.error
            check_result(call, answer.result)
        except BaseException:
            self.spoil()
            raise
        self._book_share(call, answer)
        return answer.result

    def spoil(self) -> None:
        """Note that a call has failed: no other may be made, and the caches may hold anything."""
        self.failed = self.damaged = True

    def check_usable(self) -> None:
        """Raise ValueError where no call may be made."""
        if self.failed:
            raise ValueError("session: found one that is closed, or in which a call has failed, expected a new session")

    def _book(self, part: str, position: int, rows: int, seconds: float, calls: int = 1) -> None:
        """Book calls of ``rows`` rows that the sequence has made alone, and the seconds that all of them took."""
        stats = self.stats
        stats.part_seconds[part] += seconds
        stats.nfe[part] += calls
        stats.graph_calls[part] += calls
        stats.moved_bytes += calls * self.sequence.moved_bytes(part, position, rows)

    def _book_draft(self, call: DraftCall, drafted: Drafted, seconds: float) -> None:
        """Book a draft: the decoder runs once a byte, and the encoder where drafted rows read it."""
        calls = len(drafted.tokens)
        self._book("decoder", call.position, 1, seconds - drafted.encoder_seconds, calls)
        if self._config.decoder_reads_states:
            self._book("encoder", call.position, 1, drafted.encoder_seconds, calls)

    def _book_share(self, call: PartCall, answer: Answer) -> None:
        """Book a sequence's share of a call that served several."""
        part, seconds, calls, graph_calls = call.part(self._config), answer.seconds, 1, answer.calls
        if isinstance(call, DraftCall):
            drafted: Drafted = answer.result
            calls, seconds = len(drafted.tokens), seconds - drafted.encoder_seconds
            if self._config.decoder_reads_states:
                self._book_part("encoder", drafted.encoder_seconds, calls, graph_calls)
        self._book_part(part, seconds, calls, graph_calls)
        self.stats.moved_bytes += round(answer.moved_bytes)

    def _book_part(self, part: str, seconds: float, calls: int, graph_calls: float) -> None:
        """Add calls of a part that served several sequences, and the share of the graph's calls."""
        stats = self.stats
        stats.part_seconds[part] += seconds
        stats.nfe[part] += calls
        stats.graph_calls[part] += graph_calls


def check_result(call: PartCall, result: Any) -> None:
    """Raise `GraphError` where a call has returned tokens that do not exist, or probabilities that are no numbers."""
    if isinstance(call, DecoderCall):
        check_rows(result.best, result.probability)
    elif isinstance(call, DraftCall):
        check_rows(result.tokens, result.probabilities)


def check_rows(tokens: Ids, probabilities: Any) -> None:
    """Raise `GraphError` unless the decoder found tokens that exist, and probabilities that are numbers."""
    # Lists of a few numbers, and a set, are quicker than arrays.
    found = tokens.tolist()
    if not _TOKENS.issuperset(found):
        token = next(token for token in found if token not in _TOKENS)
        raise graph_error("decoder", f"it found token {token}, expected 0 to {VOCAB_SIZE - 1}")
    if not isfinite(sum(probabilities.tolist())):
        raise graph_error("decoder", "it found a probability that is no number")
