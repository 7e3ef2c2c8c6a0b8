"""Runs the four parts of a model through a backend and books what each call costs."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import perf_counter
from typing import Concatenate, ParamSpec, TypeVar
from weakref import ref

from fastblt.models.tokens import VOCAB_SIZE
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.backends.protocol import Backend, DecoderRows, Drafted, Floats, Ids, Pick
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.turns import gate_of

P = ParamSpec("P")
T = TypeVar("T")
_TOKENS = frozenset(range(VOCAB_SIZE))


class CountedParts:
    """Calls a backend; arguments and results are those of `Backend`, time and calls go to ``stats``.

    Every call is made while no other thread is inside one, and only while the caches are the session's own.

    Args:
        backend: that runs the parts.
        stats: where calls are counted.
        session: that the caches must belong to, see `Backend.owner`.

    Raises:
        ValueError: by every call: another session has used the caches since, or a call has failed.
        GraphError: the decoder found a token that does not exist, or no probability.
    """

    def __init__(self, backend: Backend, stats: RunStats, session: object) -> None:
        self.backend = backend
        self.stats = stats
        self._session = ref(session)  # which holds these parts
        self._gate = gate_of(backend)
        self._drafts_encode = backend.config.decoder_input == "encoder"

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None) -> Floats:
        """Call `Backend.run_patcher`."""
        return self._run("patcher", len(ids), self.backend.run_patcher, position, ids, visible_from)

    def run_encoder(self, position: int, rows: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None) -> None:
        """Call `Backend.run_encoder`; ``rows`` is the number of rows, without the tokens before them in ``ids``."""
        self._run("encoder", rows, self.backend.run_encoder, position, ids, starts, ends, visible_from)

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None) -> None:
        """Call `Backend.run_global`."""
        self._run("global", count, self.backend.run_global, first_patch, count, visible_from)

    def run_decoder(self, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None) -> DecoderRows:
        """Call `Backend.run_decoder`."""
        return self._run("decoder", len(ids), self._decode, position, ids, latents, block, visible_from)

    def _decode(self, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None) -> DecoderRows:
        rows = self.backend.run_decoder(position, ids, latents, block, visible_from)
        self._check(rows.best, rows.probability)
        return rows

    def draft(self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None, visible_from: int) -> Drafted:
        """Call `Backend.draft`: one call of the decoder per byte, and of the encoder where drafted rows read it."""
        drafted = self._run("decoder", 1, self._draft, position, ids, latent, count, pick, visible_from)
        # One call of the decoder is booked, with all seconds.
        calls = len(drafted.tokens)
        self._book("decoder", position, 1, -drafted.encoder_seconds, calls - 1)
        if self._drafts_encode:
            self._book("encoder", position, 1, drafted.encoder_seconds, calls)
        return drafted

    def _draft(self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None, visible_from: int) -> Drafted:
        drafted = self.backend.draft(position, ids, latent, count, pick, visible_from)
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
        """Make a call of the backend, which runs ``rows`` rows of a part, and book it.

        A call that fails may have written half of its rows, so the caches are given up.
        """
        with self._gate:
            session = self._session()
            if self.backend.owner is not session:
                raise ValueError(
                    "session: another session has used the caches since, or a call has failed; expected a new session"
                )
            began = perf_counter()
            try:
                result = call(position, *arguments, **named)
            except BaseException:
                if self.backend.owner is session:
                    self.backend.owner = None
                raise
            seconds = perf_counter() - began
        self._book(part, position, rows, seconds)
        return result

    def _book(self, part: str, position: int, rows: int, seconds: float, calls: int = 1) -> None:
        """Book calls of a part, each of ``rows`` rows, and the seconds that all of them took."""
        stats = self.stats
        stats.part_seconds[part] += seconds
        stats.nfe[part] += calls
        stats.moved_bytes += calls * self.backend.moved_bytes(part, position, rows)
