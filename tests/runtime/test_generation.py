"""Generation of a runtime: prompts, capacity, bad arguments, chunks, boundaries, origins and statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from fakes.scripted_text import METHODS, PROMPT, REST, TEXT, collect

from fastblt.models import limits
from fastblt.models.blt import Blt
from fastblt.models.presets import preset
from fastblt.models.tokens import EOS_ID, decode, encode
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.sequence.sampling import SamplingError
from fastblt.runtime.sequence.stats import RunStats

Scripted = Callable[..., Backend]
OpenBackend = Callable[[str, str, int], Backend]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_run_when_no_bytes_are_wanted(scripted: Scripted, method: str) -> None:
    found, chunks = collect(BltRuntime(scripted(TEXT)), PROMPT, 0, method=method)
    assert (found.data, found.finish, chunks) == (b"", "length", [])
    assert sum(found.stats.nfe.values()) == found.stats.rounds == found.stats.new_bytes == 0
    assert found.stats.prompt_bytes == len(PROMPT)
    assert found.stats.acceptance is None
    assert found.stats.bytes_per_second == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 10, 31])
def test_exactly_the_wanted_bytes_are_given(scripted: Scripted, method: str, count: int) -> None:
    found, chunks = collect(BltRuntime(scripted(TEXT, misdrafted={9, 17, 30})), PROMPT, count, method=method)
    assert found.data == REST[:count] == b"".join(c.data for c in chunks)
    assert found.finish == "length"


@pytest.fixture(scope="session")
def greedy(model_of: Callable[[Backend], Blt]) -> Callable[[Backend, bytes], bytes]:
    """``greedy(backend, prompt)``: the model's 12 most likely bytes by whole sequences, computed once per model."""

    @cache
    def run(model: Blt, prompt: bytes) -> bytes:
        ids = encode(prompt).tolist()
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
        return decode(ids[-12:])

    return lambda backend, prompt: run(model_of(backend), prompt)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "prompt", [b"", b"\xff\xfe\x00\x80", b"caf\xc3", "naïve “text”", b"\x00" * 30, bytes(range(256))], ids=repr
)
def test_any_bytes_are_a_prompt(
    backend: Backend, greedy: Callable[[Backend, bytes], bytes], prompt: bytes | str, method: str
) -> None:
    found, chunks = collect(BltRuntime(backend), prompt, 12, method=method, stop_at_eos=False)
    raw = prompt.encode() if isinstance(prompt, str) else prompt
    assert found.stats.prompt_bytes == len(raw)
    assert found.data == b"".join(c.data for c in chunks)
    assert found.data == greedy(backend, raw)


def test_text_replaces_what_is_not_utf8(scripted: Scripted) -> None:
    runtime = BltRuntime(scripted(b"\xff\xc3\xa9\xc3" + b"." * 9))
    found = runtime.generate(b"", 4, method="ar")
    assert found.data == b"\xff\xc3\xa9\xc3"
    assert found.text == "�é�"


@pytest.mark.parametrize("kind", ["eager", "onnxruntime"])
def test_capacity_is_for_prompt_and_new_bytes_together(open_backend: OpenBackend, kind: str) -> None:
    runtime = BltRuntime(open_backend(kind, "embedding", 20))
    for method in METHODS:
        assert len(runtime.generate(b"x" * 12, 8, method=method, stop_at_eos=False).data) == 8
        assert runtime.generate(b"x" * 20, 0, method=method).data == b""
        with pytest.raises(CapacityError, match="prompt: found 13 bytes and max_new_bytes=8, expected at most max_b"):
            runtime.generate(b"x" * 13, 8, method=method)
        with pytest.raises(CapacityError, match="found 21 bytes"):
            runtime.generate(b"x" * 21, 0, method=method)
        with pytest.raises(CapacityError, match="found 22 bytes"):
            runtime.generate("é" * 11, 0, method=method)


BAD_ARGUMENTS: list[tuple[dict[str, object], type[ValueError], str]] = [
    ({"max_new_bytes": -1}, ValueError, "max_new_bytes: found -1, expected an integer >= 0"),
    ({"stop": [""]}, ValueError, "stop: found an empty string"),
    ({"stop": ["a", b""]}, ValueError, "stop: found an empty string"),
    ({"temperature": -0.5}, SamplingError, r"temperature: found -0\.5"),
    ({"top_p": 0.0}, SamplingError, r"top_p: found 0\.0"),
    ({"method": "b:8"}, ValueError, "method 'b:8': unknown"),
    ({"prompt": b"x" * 9000}, CapacityError, "prompt: found 9000 bytes"),
    ({"prompt": None}, ValueError, r"prompt: found NoneType, expected bytes, text, or token ids \[n\]"),
    ({"prompt": bytearray(b"x")}, ValueError, "prompt: found bytearray, expected bytes, text"),
    ({"prompt": []}, ValueError, r"prompt ids: found no id, expected 1 \(BOS\) first"),
    ({"prompt": 70}, ValueError, "prompt: found int, expected bytes, text"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_ARGUMENTS)
def test_bad_argument_is_refused_before_anything_is_run(
    scripted: Scripted, bad: dict[str, object], error: type[ValueError], message: str
) -> None:
    backend = scripted(TEXT)
    runtime = BltRuntime(backend)
    arguments = {"prompt": PROMPT, "max_new_bytes": 5} | bad
    with pytest.raises(error, match=message):
        runtime.generate(**arguments)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        runtime.stream(**arguments)  # type: ignore[arg-type]  # at once, not when it is iterated
    assert backend.calls == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("max_bytes", [0, -3])
def test_capacity_must_be_positive(max_bytes: int) -> None:
    with pytest.raises(ValueError, match=rf"max_bytes: found {max_bytes}, expected a positive integer"):
        BltRuntime.from_pretrained("nowhere", max_bytes=max_bytes)


WRONG_NUMBERS: tuple[Any, ...] = (0, True, 2.0, math.nan, "4", 10**400)


@pytest.mark.parametrize("option", ["max_bytes", "threads"])
@pytest.mark.parametrize("value", WRONG_NUMBERS)
def test_capacity_and_threads_are_positive_integers(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}: found .*, expected a positive integer up to") as found:
        BltRuntime.from_pretrained("nowhere", **{option: value})
    assert len(str(found.value)) < 150


def test_capacity_and_threads_are_bounded() -> None:
    with pytest.raises(ValueError, match="max_bytes: found 1073741825, expected a positive integer up to 1073741824"):
        BltRuntime.from_pretrained("nowhere", max_bytes=limits.TEXT_BYTES + 1)
    most = limits.THREADS_A_CORE * usable_cores()
    with pytest.raises(ValueError, match=f"threads: found 5000, expected a positive integer up to {most}"):
        BltRuntime.from_pretrained("nowhere", threads=5000)


def test_unknown_backend_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="backend: found 'tpu', expected one of onnxruntime, eager"):
        BltRuntime.from_pretrained("nowhere", backend="tpu")


@pytest.mark.parametrize("method", METHODS)
def test_stream_and_generate_give_the_same_chunks(backend: Backend, method: str) -> None:
    runtime = BltRuntime(backend)
    found, chunks = collect(runtime, b"The quick", 40, method=method, stop_at_eos=False)
    assert list(runtime.stream(b"The quick", 40, method=method, stop_at_eos=False)) == chunks
    assert found.data == b"".join(c.data for c in chunks)


def test_next_generation_is_right_when_a_stream_is_left(backend: Backend) -> None:
    runtime = BltRuntime(backend)
    expected = runtime.generate(b"The quick", 40, method="ar", stop_at_eos=False).data
    stream = runtime.stream(b"something else", 40, method="s:8", stop_at_eos=False)
    next(stream)
    next(stream)
    del stream
    assert runtime.generate(b"The quick", 40, method="ar", stop_at_eos=False).data == expected


@pytest.mark.parametrize("method", METHODS)
def test_boundaries_are_the_patches_of_the_text(
    backend: Backend, model_of: Callable[[Backend], Blt], method: str
) -> None:
    prompt = b"The quick brown fox"
    found, chunks = collect(BltRuntime(backend), prompt, 40, method=method, stop_at_eos=False)
    model, raw = model_of(backend), prompt + found.data
    assert model.config.patching.max_patch_length == 6
    # Position p is byte p - 1 of the text; BOS, a patch by itself, stands before the prompt.
    closes = model.segment(torch.from_numpy(encode(raw)).unsqueeze(0)).closes[0].nonzero().flatten()
    expected = (closes - 1 - len(prompt)).tolist()
    assert expected[0] == -1 - len(prompt)
    boundaries = [b for c in chunks for b in c.boundaries]
    known = len(found.data) - 1  # the last byte is not scored
    assert [b for b in boundaries if b < known] == [b for b in expected if b < known]
    assert all(b < len(found.data) for b in boundaries)
    done = 0
    for chunk in chunks:
        done += len(chunk.data)
        assert all(b < done for b in chunk.boundaries)


@pytest.mark.parametrize("wrong", [(), range(1, 200, 4), range(1, 200)], ids=["never", "some", "always"])
def test_origins_tell_how_bytes_came_about(scripted: Scripted, wrong: range) -> None:
    runtime = BltRuntime(scripted(TEXT, misdrafted=wrong))
    found, chunks = collect(runtime, PROMPT, 60, method="s:4")
    origins = [o for c in chunks for o in c.origins]
    assert len(origins) == len(found.data) == 60
    assert all(len(c.origins) == len(c.data) for c in chunks)
    assert origins[0] == "sampled"
    assert origins.count("sampled") == 1
    for i, origin in enumerate(origins[1:], 1):
        position = len(PROMPT) + 1 + i
        if origin == "accepted":
            assert position not in wrong
        elif origin == "corrected":
            assert position in wrong
    expected = {"never": {"accepted", "free"}, "some": {"accepted", "corrected"}, "always": {"corrected"}}
    kind = "never" if not wrong else ("always" if len(wrong) == 199 else "some")
    assert set(origins[1:]) <= expected[kind] | {"free"}
    assert set(origins[1:]) & expected[kind] == expected[kind]
    rejected = sum(len(c.rejected) for c in chunks)
    assert found.stats.drafted == found.stats.accepted + rejected
    assert found.stats.drafted == 4 * (found.stats.rounds - 1)


def test_bytes_of_autoregression_are_all_sampled(backend: Backend) -> None:
    _, chunks = collect(BltRuntime(backend), b"abc", 20, stop_at_eos=False)
    assert {o for c in chunks for o in c.origins} == {"sampled"}
    assert all(c.rejected == b"" for c in chunks)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_account_for_every_byte_and_call(scripted: Scripted, method: str) -> None:
    backend = scripted(TEXT, surprising={3, 9, 10, 20}, misdrafted={12, 30})
    found, _ = collect(BltRuntime(backend), PROMPT, 45, method=method)
    stats = found.stats
    calls = backend.calls  # type: ignore[attr-defined]
    drafts = [rows for part, _, rows in calls if part == "draft"]
    made = {part: sum(p == part for p, _, _ in calls) for part in ("patcher", "encoder", "global", "decoder")}
    made["decoder"] += sum(drafts)
    if backend.config.decoder_input == "encoder":
        made["encoder"] += sum(drafts)
    assert dict(stats.nfe) == made
    assert stats.prompt_bytes == len(PROMPT)
    assert stats.new_bytes == 45
    assert stats.drafted == sum(drafts)
    # The scripted backend says 1000 and the rows of each call; a draft's rows are single.
    parts = 2 if backend.config.decoder_input == "encoder" else 1
    moved = sum(1000 + rows for part, _, rows in calls if part != "draft") + parts * 1001 * sum(drafts)
    assert stats.moved_bytes == moved
    assert 0 < stats.first_byte_seconds <= stats.total_seconds
    assert stats.bytes_per_second == pytest.approx(45 / stats.total_seconds)
    assert all(s > 0 for s in stats.byte_seconds)
    if method == "ar":
        assert stats.rounds == 45
        assert stats.acceptance is None
        assert len(stats.byte_seconds) == 44
    else:
        assert 0 < stats.acceptance == stats.accepted / stats.drafted < 1


@pytest.mark.parametrize("method", METHODS)
def test_eos_ends_the_text_or_is_a_token_without_a_byte(scripted: Scripted, method: str) -> None:
    tokens = [*encode(PROMPT + REST[:10], bos=False), EOS_ID, *encode(REST[10:], bos=False)]
    runtime = BltRuntime(scripted(tokens, surprising=range(0, 200, 3)))
    found, _ = collect(runtime, PROMPT, 30, method=method)
    assert (found.data, found.finish) == (REST[:10], "eos")
    found, chunks = collect(runtime, PROMPT, 30, method=method, stop_at_eos=False)
    # A token without a byte counts as one of the thirty.
    assert (found.data, found.finish) == (REST[:29], "length")
    assert all(len(c.origins) == len(c.data) for c in chunks)
    boundaries = [b for c in chunks for b in c.boundaries]
    assert boundaries == sorted(boundaries)
    assert all(b < 29 for b in boundaries)


@pytest.mark.parametrize("method", METHODS)
def test_generation_ends_when_the_model_gives_tokens_without_bytes_for_ever(scripted: Scripted, method: str) -> None:
    """Such tokens count as new bytes: otherwise only the end of the buffers would end the text."""
    tokens = [*encode(PROMPT + REST[:4], bos=False), *[EOS_ID] * 400]
    runtime = BltRuntime(scripted(tokens, max_bytes=60))
    found, _ = collect(runtime, PROMPT, 50, method=method, stop_at_eos=False)
    assert (found.data, found.finish) == (REST[:4], "length")


def test_estimated_traffic_is_that_of_the_paper() -> None:
    """Table of the Fast BLT paper, 1B, French to English: 512 decoder and 250 encoder and global calls, 814.95 GB."""
    stats = RunStats()
    stats.nfe.update(patcher=512, decoder=512, encoder=250, **{"global": 250})
    assert stats.estimated_gb(preset("blt-d-1b")) == pytest.approx(814.95, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_prompt_in_the_middle_of_a_character_is_continued(scripted: Scripted, method: str) -> None:
    text = "Größe, Straße und Übermut: Wörter mit Umlauten, mehr als einer Runde.".encode()
    runtime = BltRuntime(scripted(text))
    found, chunks = collect(runtime, text[:3], 20, method=method)
    assert text[:3] + found.data == text[:23]
    assert np.concatenate([np.frombuffer(c.data, np.uint8) for c in chunks]).tobytes() == found.data
