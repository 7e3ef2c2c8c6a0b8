"""Predicts the bytes that texts move while they share calls, from what they move in turn.

Weights are read once a call, however many texts it serves; caches are each text's own. A call that every text makes in
each round is always shared by all of them. One that a text makes only in a part f of its rounds (the encoder's and the
global transformer's, where a patch has closed) happens whenever any of n texts makes it: in 1 - (1 - f)^n of the
rounds, since patches of different texts close independently.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastblt.runtime.measure.bench.streams.growth import Work


def predicted_moved_bytes(in_turn: Work, streams: int, weights: Mapping[str, float]) -> float:
    """Return the weight and cache bytes that the same work moves where texts share calls.

    Args:
        in_turn: what the texts did in turn.
        streams: how many there were.
        weights: bytes of each part's weights.
    """
    moved = in_turn.moved_bytes
    rounds = in_turn.rounds / streams
    for part, calls in in_turn.calls.items():
        shared = rounds * calls_per_round(calls / in_turn.rounds, streams) if rounds else 0.0
        moved += weights[part] * (shared - calls)
    return moved


def calls_per_round(calls: float, streams: int) -> float:
    """Return the calls of a graph in a round of all texts, where each of them alone makes so many on average."""
    always = int(calls)
    return always + 1 - (1 - (calls - always)) ** streams
