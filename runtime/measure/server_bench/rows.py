"""Computes the figures of a server: one row for each server, number of clients and method.

* Text is counted in bytes of UTF-8 as it arrives, whatever a server calls a token.
* The first byte is the first text; without streaming, that is the whole answer.
* A client's rate is the bytes of an answer divided by all seconds from sending the request to its end, so waiting in a
  queue counts. The rate in all is the bytes of all answers divided by the seconds of the row.
* Answers that end in an error count as errors only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastblt.runtime.measure.server_bench.answer import Answer
from fastblt.runtime.measure.server_bench.load import Load


@dataclass(frozen=True)
class ServerRow:
    """Holds the figures of one number of clients. The names are a contract: scripts read them from JSON."""

    endpoint: str
    """URL that requests went to."""
    clients: int
    method: str | None
    """That was asked for; null: the server's own."""
    requests: int
    errors: dict[str, int]
    """Requests that failed, by kind."""
    seconds: float
    bytes: int
    """Of text that arrived, in UTF-8."""
    tokens: int | None
    """That the server counted; null where it did not."""
    prompt_tokens: int | None
    cached_tokens: int | None
    """Of the prompts, those that the server knew already; null where it does not report them."""
    first_byte_ms_p50: float | None
    first_byte_ms_p95: float | None
    between_chunks_ms_p50: float | None
    """Null where every answer came in one piece."""
    between_chunks_ms_p95: float | None
    seconds_p50: float | None
    """From sending a request to the end of its answer."""
    seconds_p95: float | None
    bytes_per_s_per_client_p50: float | None
    bytes_per_s: float
    tokens_per_s: float | None
    acceptance: float | None
    """``accepted / (accepted + rejected)`` prediction tokens; null where the server reports none."""


def row_of(load: Load) -> ServerRow:
    """Return the figures of what came of one row's requests."""
    complete = [answer for answer in load.answers if answer.error is None]
    usages = [answer.usage for answer in complete if answer.usage is not None]
    counted = bool(usages) and len(usages) == len(complete)
    tokens = sum(usage.completion for usage in usages) if counted else None
    accepted, rejected = _sum(usage.accepted for usage in usages), _sum(usage.rejected for usage in usages)
    drafted = None if accepted is None or rejected is None else accepted + rejected
    first = _milliseconds([answer.arrivals[0] for answer in complete if answer.arrivals])
    gaps = _milliseconds([after - before for answer in complete for before, after in pairwise(answer.arrivals)])
    seconds = _percentiles([answer.seconds for answer in complete])
    rates = _percentiles([size_of(answer) / answer.seconds for answer in complete if answer.text])
    size = sum(map(size_of, complete))
    return ServerRow(
        endpoint=load.endpoint,
        clients=load.clients,
        method=load.method,
        requests=len(load.answers),
        errors=dict(Counter(answer.error for answer in load.answers if answer.error is not None)),
        seconds=load.seconds,
        bytes=size,
        tokens=tokens,
        prompt_tokens=sum(usage.prompt for usage in usages) if counted else None,
        cached_tokens=_sum(usage.cached for usage in usages),
        first_byte_ms_p50=first[0],
        first_byte_ms_p95=first[1],
        between_chunks_ms_p50=gaps[0],
        between_chunks_ms_p95=gaps[1],
        seconds_p50=seconds[0],
        seconds_p95=seconds[1],
        bytes_per_s_per_client_p50=rates[0],
        bytes_per_s=size / load.seconds,
        tokens_per_s=None if tokens is None else tokens / load.seconds,
        acceptance=accepted / drafted if drafted and accepted is not None else None,
    )


def size_of(answer: Answer) -> int:
    """Return the bytes of an answer's text in UTF-8."""
    return len(answer.text.encode("utf-8", "surrogatepass"))


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _milliseconds(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    return _percentiles([1e3 * value for value in seconds])


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return median and 95th percentile; None where there are no values."""
    if not values:
        return None, None
    median, high = np.percentile(np.array(values), (50, 95))
    return float(median), float(high)
