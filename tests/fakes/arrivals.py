"""Lets texts arrive and leave at any time while others grow, and compares them with the same texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream

TEXT = b"In the beginning God created the heaven and the earth. And the earth was without form, and void; " * 4
MOST = 6


class Arrival(NamedTuple):
    """Describes a text: its prompt, what it is written with, when it comes, and when it is closed."""

    start: int
    length: int
    method: str
    new_bytes: int
    temperature: float
    turn: int
    steps: int
    """After which it is closed before its end; texts that end before are not."""

    @property
    def prompt(self) -> bytes:
        return TEXT[self.start : self.start + self.length]

    @property
    def options(self) -> dict[str, Any]:
        return {"method": self.method, "temperature": self.temperature, "seed": 3, "stop_at_eos": False}


def arrivals(methods: Sequence[str]) -> st.SearchStrategy[list[Arrival]]:
    """Return texts that arrive in the first rounds, long prompts among them; some are closed before their end."""
    one = st.builds(
        Arrival,
        st.integers(0, 300),
        st.sampled_from([1, 30, 30, 300]),
        st.sampled_from(methods),
        st.integers(1, 40),
        st.sampled_from([0.0, 0.9]),
        st.integers(0, 9),
        st.sampled_from([4, 1000, 1000, 1000]),
    )
    return st.lists(one, min_size=2, max_size=MOST)


def check_arrivals(together: BltRuntime, alone: BltRuntime, wanted: Sequence[Arrival]) -> None:
    """Assert that each text has the bytes that it has alone, as far as it was written."""
    scheduler = RoundScheduler(together.backend, MOST)
    assert scheduler.shares_calls
    running: dict[int, ByteStream] = {}
    found = [b""] * len(wanted)
    ended = [True] * len(wanted)
    for turn in range(1000):
        for index, text in enumerate(wanted):
            if text.turn == turn:
                running[index] = together.stream(text.prompt, text.new_bytes, **text.options)
            elif index in running and turn == text.turn + text.steps:
                running.pop(index).close()
                ended[index] = False
        if not running and turn >= max(text.turn for text in wanted):
            break
        for index, step in zip(list(running), scheduler.step(list(running.values())), strict=True):
            assert step.error is None
            found[index] += step.chunk.data if step.chunk else b""
            if not running[index].open:
                del running[index]
    scheduler.close()
    assert together.sequences_in_use == 0
    for text, data, whole in zip(wanted, found, ended, strict=True):
        if text.method == "auto" and text.temperature:
            continue  # the clock decides how its bytes are drafted: a seed does not fix them
        expected = alone.generate(text.prompt, text.new_bytes, **text.options).data
        assert data == (expected if whole else expected[: len(data)])
