"""Texts that continue from call to call: what belongs to them, who waits, and what an error leaves."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastblt.models.tokens import BOS_ID, EOS_ID, encode
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequences.sequence import Sequence
from fastblt.runtime.turns import BusyError

Scripted = Callable[..., Backend]
TEXT = b"Once upon a time there was a fox. The fox had a den. END of the story, and more that is never reached at all."


@pytest.fixture
def sequence(scripted: Scripted) -> Sequence:
    return BltRuntime(scripted(TEXT)).sequence()


def test_text_grows_by_prompts_and_what_comes_back(sequence: Sequence) -> None:
    assert (sequence.data, sequence.text) == (b"", "")
    assert sequence.generate(b"Once", 6, method="s:3").data == TEXT[4:10]
    assert sequence.generate("a ", 4, method="ar").data == TEXT[12:16]
    with sequence.stream(np.array([BOS_ID]), 8) as stream:
        found = next(stream).data
        assert sequence.data == TEXT[:16] + found
        found += b"".join(chunk.data for chunk in stream)
    assert sequence.data == TEXT[:24] == TEXT[:16] + found
    assert sequence.tokens.tolist() == encode(TEXT[:24]).tolist()
    assert sequence.generate_into(lambda stream: next(stream).data, b"", 20, method="ar") == TEXT[24:25]
    assert sequence.data == TEXT[:25]


def test_score_leaves_the_text(sequence: Sequence) -> None:
    sequence.generate(b"Once", 6)
    assert sequence.score(b"a ", b"time").logprobs == pytest.approx(np.zeros(4), abs=1e-4)
    assert sequence.data == TEXT[:10]
    assert sequence.generate(b"", 6).data == TEXT[10:16]


def test_what_was_not_received_is_no_part_of_the_text(scripted: Scripted) -> None:
    sequence = BltRuntime(scripted(TEXT)).sequence()
    assert sequence.generate(b"Once", 40, stop=" there").finish == "stop"
    assert sequence.data == TEXT[:16]
    stream = sequence.stream(b"", 40, method="ar", stop="fox. The cat")
    while b"was a " not in sequence.data:
        next(stream)
    for _ in range(4):
        stream.step()  # "fox." is held back
    stream.close()
    assert sequence.data == TEXT[:29]
    assert sequence.generate(b"", 9).data == TEXT[29:38]
    ends = BltRuntime(scripted([*encode(b"Once upon", bos=False).tolist(), EOS_ID, 100, 100])).sequence()
    assert ends.generate(b"Once", 40).finish == "eos"
    assert ends.data == b"Once upon"
    inside = BltRuntime(scripted([*encode(b"Once upon", bos=False).tolist(), EOS_ID, *[100] * 60])).sequence()
    inside.generate(b"Once", 8, stop_at_eos=False)
    assert inside.tokens.tolist() == [*encode(b"Once upon").tolist(), EOS_ID, 100, 100]


def test_stream_that_is_dropped_leaves_what_it_returned(sequence: Sequence) -> None:
    gc.disable()
    try:
        stream = sequence.stream(b"Once", 20, method="ar")
        next(stream)
        with pytest.raises(BusyError, match="sequence: found a stream that is open, expected none; read it to its end"):
            sequence.generate(b"", 3)
        del stream
        assert sequence.data == TEXT[:5]
        assert sequence.generate(b"", 5).data == TEXT[5:10]
    finally:
        gc.enable()


def test_call_from_inside_a_call_is_refused(sequence: Sequence) -> None:
    with pytest.raises(BusyError, match="sequence: found a call from inside another one"):
        sequence.generate(b"Once", 5, on_chunk=lambda _: sequence.score(b"", b"x"))
    assert sequence.data == b""


@pytest.mark.parametrize("late", [False, True])
def test_call_that_fails_leaves_the_text(scripted: Scripted, late: bool) -> None:
    backend: Any = scripted(TEXT)
    sequence = BltRuntime(backend).sequence()
    sequence.generate(b"Once", 6, method="ar")
    decode, calls = backend.run_decoder, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            found = decode(*arguments) if late else None
            raise KeyboardInterrupt(found)
        return decode(*arguments)

    backend.run_decoder = interrupted
    for begin in (
        lambda: sequence.generate(b"a ", 9, method="ar"),
        lambda: list(sequence.stream(b"a ", 9, method="ar")),
        lambda: [sequence.score(b"a ", b"time") for _ in range(3)],
    ):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            begin()
        assert sequence.data == TEXT[:10]
    backend.run_decoder = decode
    with pytest.raises(KeyError):
        sequence.generate(b"a ", 9, on_chunk=lambda _: {}[0])
    assert sequence.generate(b"a ", 4, method="ar").data == TEXT[12:16]


def test_text_that_does_not_fit_is_refused(scripted: Scripted) -> None:
    sequence = BltRuntime(scripted(TEXT, max_bytes=40)).sequence()
    sequence.generate(b"Once", 16)
    expected = r"^text and prompt: found 22 bytes and max_new_bytes=19, expected at most max_bytes=40 in all$"
    with pytest.raises(CapacityError, match=expected):
        sequence.generate(b"e ", 19)
    with pytest.raises(CapacityError, match="text and prompt: found 20 bytes and a continuation of 21"):
        sequence.score(b"", bytes(21))
    assert sequence.generate(b"", 20).data == TEXT[20:40]


def test_closed_sequence_is_refused_and_its_place_free(sequence: Sequence) -> None:
    with sequence as text:
        stream = text.stream(b"Once", 20, method="ar")
        next(stream)
    assert (stream.open, stream.finish) == (False, "closed")
    sequence.close()
    for call in (sequence.stream, sequence.generate, lambda prompt: sequence.score(prompt, b"x")):
        with pytest.raises(ValueError, match="sequence: closed, expected an open one"):
            call(b"")
    assert sequence.data == TEXT[:5]


def test_more_sequences_than_places(runtime: BltRuntime) -> None:
    """The one that was used longest ago is copied to the host's memory, and read from there."""
    sequences = [runtime.sequence() for _ in range(3)]
    for turn in range(2):
        for number, sequence in enumerate(sequences):
            found = sequence.generate(bytes([97 + number]) * 20, 8, method="ar", stop_at_eos=False)
            # All but the prompt and the last byte, which nobody has read.
            assert found.stats.reused_bytes == turn * 27
    stats = runtime.pool_stats
    assert (stats.texts, stats.in_use, stats.idle, stats.waiting) == (6, 0, 2, 0)
    assert (stats.saved, stats.restored, stats.evicted) == (4, 3, 4)


def test_every_backend_brings_back_what_was_copied(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences share one place; each is what it is alone, and what it has read is not read again."""
    prompts = (b"Once upon a time there was a fox. " * 2, b"The quick brown")
    fresh = BltRuntime(backend, reuse_prompts=False)
    texts = list(prompts)
    for turn in range(2):
        for number, text in enumerate(texts):
            found = fresh.generate(text + b"." * turn, 10, method="ar", stop_at_eos=False).data
            texts[number] = text + b"." * turn + found
    del fresh
    monkeypatch.setattr(backend, "sequences", 1)
    runtime = BltRuntime(backend)
    sequences = [runtime.sequence() for _ in prompts]
    for turn in range(2):
        for prompt, sequence in zip(prompts, sequences, strict=True):
            found_now = sequence.generate(b"." if turn else prompt, 10, method="s:3", stop_at_eos=False)
            assert found_now.stats.reused_bytes >= turn * (len(prompt) + 6)
    assert [sequence.data for sequence in sequences] == texts
    assert (runtime.pool_stats.saved, runtime.pool_stats.restored) == (3, 2)
