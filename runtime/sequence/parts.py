"""Runs the parts of a model through a backend's sequence and books what each call costs."""

from __future__ import annotations

from collections.abc import Generator
from math import isfinite
from time import perf_counter
from typing import Any, TypeAlias, TypeVar, cast

from fastblt.models.config import BltConfig
from fastblt.models.tokens import VOCAB_SIZE
from fastblt.runtime.backends.batching import (
    Answer,
    DecoderCall,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.protocol import BackendSequence, Drafted, Ids, decoder_of
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
        self._history = config.hash.context - 1

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
        self.check_usable()
        sequence = self.sequence
        began = perf_counter()
        try:
            if isinstance(call, DecoderCall):
                result: Any = sequence.run_decoder(*call)
                check_rows(result.best, result.probability)
            elif isinstance(call, PatcherCall):
                result = sequence.run_patcher(*call)
            elif isinstance(call, DraftCall):
                result = sequence.draft(*call)
                check_rows(result.tokens, result.probabilities)
            elif isinstance(call, EncoderCall):
                result = None
                sequence.run_encoder(*call)
            else:
                result = None
                sequence.run_global(*call)
        except BaseException:
            self.spoil()
            raise
        self._book(call, result, perf_counter() - began)
        return result

    def take(self, call: PartCall, answer: Answer) -> Any:
        """Book what a batch has answered to a call, and return the result."""
        try:
            if isinstance(call, DecoderCall):
                check_rows(answer.result.best, answer.result.probability)
            elif isinstance(call, DraftCall):
                check_rows(answer.result.tokens, answer.result.probabilities)
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

    def part_of(self, call: PartCall) -> str:
        """Return the part that a call runs."""
        if isinstance(call, DecoderCall):
            return decoder_of(self._config, call.block)
        return _PARTS[type(call)]

    def _book(self, call: PartCall, result: Any, seconds: float) -> None:
        """Book a call that the sequence has made alone."""
        if isinstance(call, DraftCall):
            self._book_draft(call, result, seconds)
            return
        part, position = self.part_of(call), call[0]
        self._add(part, seconds, 1, self.sequence.moved_bytes(part, position, self._rows_of(call)))

    def _book_draft(self, call: DraftCall, drafted: Drafted, seconds: float) -> None:
        """Book a draft: the decoder runs once a byte, and the encoder where drafted rows read it."""
        moved, calls = self.sequence.moved_bytes, len(drafted.tokens)
        self._add("decoder", seconds - drafted.encoder_seconds, calls, calls * moved("decoder", call.position, 1))
        if self._config.decoder_reads_states:
            self._add("encoder", drafted.encoder_seconds, calls, calls * moved("encoder", call.position, 1))

    def _book_share(self, call: PartCall, answer: Answer) -> None:
        """Book a sequence's share of a call that served several."""
        part, seconds, calls, graph_calls = self.part_of(call), answer.seconds, 1, answer.calls
        if isinstance(call, DraftCall):
            drafted: Drafted = answer.result
            calls, seconds = len(drafted.tokens), seconds - drafted.encoder_seconds
            if self._config.decoder_reads_states:
                self._add("encoder", drafted.encoder_seconds, calls, 0, graph_calls)
                self.stats.shared_calls += graph_calls
        self._add(part, seconds, calls, round(answer.moved_bytes), graph_calls)
        self.stats.shared_calls += answer.calls

    def _add(self, part: str, seconds: float, calls: int, moved_bytes: int, graph_calls: float | None = None) -> None:
        """Add calls; ``graph_calls`` is a share of those of the graph, None: all of them."""
        stats = self.stats
        stats.part_seconds[part] += seconds
        stats.nfe[part] += calls
        stats.graph_calls[part] += calls if graph_calls is None else graph_calls
        stats.moved_bytes += moved_bytes

    def _rows_of(self, call: PartCall) -> int:
        """Return the rows that a call runs."""
        if isinstance(call, GlobalCall):
            return call.patches
        if isinstance(call, DraftCall):
            return 1
        return len(call.ids) - (self._history if isinstance(call, EncoderCall) else 0)


_PARTS: dict[type, str] = {
    PatcherCall: "patcher",
    EncoderCall: "encoder",
    GlobalCall: "global",
    DecoderCall: "decoder",
    DraftCall: "decoder",
}


def check_rows(tokens: Ids, probabilities: Any) -> None:
    """Raise `GraphError` unless the decoder found tokens that exist, and probabilities that are numbers."""
    # Lists of a few numbers, and a set, are quicker than arrays.
    found = tokens.tolist()
    if not _TOKENS.issuperset(found):
        token = next(token for token in found if token not in _TOKENS)
        raise graph_error("decoder", f"it found token {token}, expected 0 to {VOCAB_SIZE - 1}")
    if not isfinite(sum(probabilities.tolist())):
        raise graph_error("decoder", "it found a probability that is no number")
