"""Predicts the bytes that texts move while they share calls, from what they move in turn.

Weights are read once a call, however many texts it serves; caches are each text's own. In a round of several texts, the
graph of a part is called as often as the text does that needs it most: a draft of eight bytes takes eight calls,
whoever drafts less beside it, and the encoder's and the global transformer's happen if a patch of any text has closed.
The expected maximum follows from how often each number of calls occurs in the rounds of one text, if texts are
independent of each other. Where they are not, as with `auto`, which learns one draft length for all, it is too high.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastblt.runtime.measure.bench.streams.growth import Work


def predicted_moved_bytes(
    in_turn: Work, rounds_by_calls: Mapping[str, Mapping[int, int]], streams: int, weights: Mapping[str, float]
) -> float:
    """Return the weight and cache bytes that the same work moves where texts share calls.

    Args:
        in_turn: what the texts did in turn.
        rounds_by_calls: for each part, in how many rounds of a text it was called so many times.
        streams: how many texts there were.
        weights: bytes of each part's weights.
    """
    moved = in_turn.moved_bytes
    for part, rounds in rounds_by_calls.items():
        calls = sum(number * count for number, count in rounds.items())
        shared = in_turn.rounds / streams * expected_most(rounds, in_turn.rounds, streams)
        moved += weights[part] * (shared - calls)
    return moved


def expected_most(rounds_by_calls: Mapping[int, int], rounds: int, streams: int) -> float:
    """Return the expected maximum of the calls that several texts make in a round.

    Args:
        rounds_by_calls: in how many rounds of a text it makes so many calls; in all others it makes none.
        rounds: of all texts, at least 1.
        streams: how many texts there are, independent of each other.
    """
    fewer = rounds - sum(rounds_by_calls.values())
    expected = 0.0
    for calls in range(1, max(rounds_by_calls, default=0) + 1):
        expected += 1 - (fewer / rounds) ** streams
        fewer += rounds_by_calls.get(calls, 0)
    return expected
