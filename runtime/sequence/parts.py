"""Runs the parts of a model through a backend's sequence and books what each call costs."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import perf_counter
from typing import Concatenate, ParamSpec, TypeVar

from fastblt.models.config import BltConfig
from fastblt.models.tokens import VOCAB_SIZE
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.protocol import BackendSequence, DecoderRows, Drafted, Floats, Ids, Pick, decoder_of
from fastblt.runtime.sequence.stats import RunStats

P = ParamSpec("P")
T = TypeVar("T")
_TOKENS = frozenset(range(VOCAB_SIZE))


class CountedParts:
    """Calls a sequence; arguments and results are those of `BackendSequence`, time and calls go to ``stats``.

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

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None) -> Floats:
        """Call `BackendSequence.run_patcher`."""
        return self._run("patcher", len(ids), self.sequence.run_patcher, position, ids, visible_from)

    def run_encoder(self, position: int, rows: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None) -> None:
        """Call `BackendSequence.run_encoder`; ``rows`` counts the rows, without the tokens before them in ``ids``."""
        self._run("encoder", rows, self.sequence.run_encoder, position, ids, starts, ends, visible_from)

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None) -> None:
        """Call `BackendSequence.run_global`."""
        self._run("global", count, self.sequence.run_global, first_patch, count, visible_from)

    def run_decoder(self, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None) -> DecoderRows:
        """Call `BackendSequence.run_decoder`."""
        part = decoder_of(self._config, block)
        return self._run(part, len(ids), self._decode, position, ids, latents, block, visible_from)

    def _decode(self, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None) -> DecoderRows:
        rows = self.sequence.run_decoder(position, ids, latents, block, visible_from)
        self._check(rows.best, rows.probability)
        return rows

    def draft(self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None, visible_from: int) -> Drafted:
        """Call `BackendSequence.draft`: the decoder runs once a byte, and the encoder where drafted rows read it."""
        drafted = self._run("decoder", 1, self._draft, position, ids, latent, count, pick, visible_from)
        # One call of the decoder is booked, with all seconds.
        calls = len(drafted.tokens)
        self._book("decoder", position, 1, -drafted.encoder_seconds, calls - 1)
        if self._config.decoder_reads_states:
            self._book("encoder", position, 1, drafted.encoder_seconds, calls)
        return drafted

    def _draft(self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None, visible_from: int) -> Drafted:
        drafted = self.sequence.draft(position, ids, latent, count, pick, visible_from)
        self._check(drafted.tokens, drafted.probabilities)
        return drafted

    def _check(self, tokens: Ids, probabilities: Floats) -> None:
        """Raise `GraphError` unless the decoder found tokens that exist, and probabilities that are numbers."""
        # Lists of a few numbers, and a set, are quicker than arrays.
        found = tokens.tolist()
        if not _TOKENS.issuperset(found):
            token = next(token for token in found if token not in _TOKENS)
            raise graph_error("decoder", f"it found token {token}, expected 0 to {VOCAB_SIZE - 1}")
        if not isfinite(sum(probabilities.tolist())):
            raise graph_error("decoder", "it found a probability that is no number")

    def _run(
        self,
        part: str,
        rows: int,
        call: Callable[Concatenate[int, P], T],
        position: int,
        *arguments: P.args,
        **named: P.kwargs,
    ) -> T:
        """Make a call of the sequence, which runs ``rows`` rows of a part, and book it."""
        if self.failed:
            raise ValueError("session: found one that is closed, or in which a call has failed, expected a new session")
        began = perf_counter()
        try:
            result = call(position, *arguments, **named)
        except BaseException:
            self.failed = self.damaged = True
            raise
        self._book(part, position, rows, perf_counter() - began)
        return result

    def _book(self, part: str, position: int, rows: int, seconds: float, calls: int = 1) -> None:
        """Book calls of a part, each of ``rows`` rows, and the seconds that all of them took."""
        stats = self.stats
        stats.part_seconds[part] += seconds
        stats.nfe[part] += calls
        stats.moved_bytes += calls * self.sequence.moved_bytes(part, position, rows)
