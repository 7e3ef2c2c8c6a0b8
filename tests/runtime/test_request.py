import dataclasses
import itertools
import math
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.methods import MethodError, parse_method
from fastblt.runtime.methods.ar import Autoregressive
from fastblt.runtime.request import DEFAULT_NEW_BYTES, GenerationOptions, GenerationRequest
from fastblt.runtime.sequence.sampling import SamplingError

Scripted = Callable[..., Backend]
TEXT = b"Once upon a time there was a fox. The fox had a den. END of the story, and more that is never reached at all."


def test_defaults_are_greedy_and_adaptive() -> None:
    request = GenerationRequest()
    assert request.max_new_bytes == DEFAULT_NEW_BYTES == 256
    assert request.decoding_method().name == "auto"
    sampler = request.sampler()
    assert sampler.greedy
    assert sampler.takes_best
    assert request.stop_rules().strings == ()
    assert request.stop_rules().at_eos


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_method_is_one_that_a_seed_fixes_where_there_is_one(temperature: float) -> None:
    assert GenerationRequest(seed=0, temperature=temperature).decoding_method().name == "s:8"
    assert GenerationRequest(temperature=temperature).decoding_method().name == "auto"
    assert GenerationRequest(seed=0, temperature=temperature, method="auto").decoding_method().name == "auto"


def test_method_object_is_taken_as_it_is() -> None:
    method = parse_method("s:3")
    assert GenerationRequest(method=method).decoding_method() is method


def test_request_equals_and_hashes_by_value() -> None:
    one = GenerationRequest(stop="END", logit_bias={65: 1})
    other = GenerationRequest(stop=[b"END"], logit_bias={65: 1.0})
    assert one == other
    assert hash(one) == hash(other)
    assert one.stop == (b"END",)
    assert dataclasses.replace(one, seed=3).stop == (b"END",)
    assert dataclasses.asdict(one)["logit_bias"] == {65: 1.0}


def test_bias_is_copied() -> None:
    bias = {65: 1.0}
    request = GenerationRequest(logit_bias=bias)
    bias[66] = 2.0
    assert request.logit_bias == {65: 1.0}


def test_every_option_of_generate_is_a_field_of_the_request() -> None:
    fields = [field.name for field in dataclasses.fields(GenerationRequest)]
    assert ["max_new_bytes", *typing.get_type_hints(GenerationOptions)] == fields


BAD: list[tuple[dict[str, Any], type[ValueError], str]] = [
    ({"max_new_bytes": -1}, ValueError, "max_new_bytes: found -1, expected an integer >= 0"),
    ({"max_new_bytes": 2.5}, ValueError, r"max_new_bytes: found 2\.5, expected an integer"),
    ({"max_new_bytes": True}, ValueError, "max_new_bytes: found True, expected an integer"),
    ({"method": "b:8"}, MethodError, "method 'b:8': unknown"),
    ({"method": Autoregressive}, MethodError, "method: found the class Autoregressive, expected a name or an object"),
    ({"method": 8}, MethodError, "method: found int, expected a name or an object"),
    ({"temperature": -1.0}, SamplingError, r"temperature: found -1\.0, expected a number >= 0"),
    ({"temperature": math.inf}, SamplingError, "temperature: found inf"),
    ({"temperature": "hot"}, SamplingError, "temperature: found 'hot', expected a number >= 0"),
    ({"top_p": None}, SamplingError, "top_p: found None, expected a number"),
    ({"min_p": True}, SamplingError, "min_p: found True, expected a number"),
    ({"top_p": 0.0}, SamplingError, r"top_p: found 0\.0, expected a number in \(0, 1\]"),
    ({"top_k": -1}, SamplingError, "top_k: found -1, expected an integer >= 0"),
    ({"top_k": 1.5}, SamplingError, r"top_k: found 1\.5, expected an integer >= 0"),
    ({"min_p": 1.5}, SamplingError, r"min_p: found 1\.5, expected a number in \[0, 1\]"),
    ({"min_p": math.nan}, SamplingError, "min_p: found nan"),
    ({"seed": -1}, SamplingError, "seed: found -1, expected an integer >= 0"),
    ({"logit_bias": {256: 1.0}}, SamplingError, r"logit_bias: found 256, expected byte values in 0\.\.255"),
    ({"logit_bias": {"a": 1.0}}, SamplingError, "logit_bias: found 'a', expected byte values"),
    ({"logit_bias": {65: math.inf}}, SamplingError, "logit_bias: found inf for byte 65, expected a finite number, or"),
    ({"logit_bias": {65: math.nan}}, SamplingError, "logit_bias: found nan for byte 65"),
    ({"logit_bias": {65: "x"}}, SamplingError, "logit_bias: found 'x' for byte 65, expected a finite number"),
    ({"logit_bias": [65]}, SamplingError, r"logit_bias: found \[65\], expected a mapping of byte values"),
    ({"banned_bytes": "abc"}, SamplingError, "banned_bytes: found 'abc', expected bytes"),
    ({"banned_bytes": bytes(range(256))}, SamplingError, "found every byte banned, expected at least one that is not"),
    (
        {"banned_bytes": bytes(range(1, 256)), "logit_bias": {0: -math.inf}},
        SamplingError,
        "found every byte banned",
    ),
    ({"max_new_bytes": math.nan}, ValueError, "max_new_bytes: found nan, expected an integer"),
    ({"max_new_bytes": np.float64(2)}, ValueError, r"max_new_bytes: found np\.float64\(2\.0\), expected an integer"),
    ({"max_new_bytes": "5"}, ValueError, "max_new_bytes: found '5', expected an integer"),
    (
        {"max_new_bytes": 10**400},
        ValueError,
        "max_new_bytes: found 'an integer of 1329 bits', expected an integer >= 0",
    ),
    ({"max_new_bytes": np.zeros((2, 2))}, ValueError, r"max_new_bytes: found array\(.* expected an integer >= 0"),
    ({"temperature": 10**400}, SamplingError, "temperature: found 'an integer of 1329 bits', expected a number"),
    ({"top_p": 10**400}, SamplingError, "top_p: found 'an integer of 1329 bits', expected a number"),
    ({"top_k": -(10**5000)}, SamplingError, "top_k: found 'an integer of 16610 bits', expected an integer"),
    ({"top_k": math.nan}, SamplingError, "top_k: found nan, expected an integer"),
    ({"top_k": True}, SamplingError, "top_k: found True, expected an integer"),
    ({"seed": 1.0}, SamplingError, "seed: found 1.0, expected an integer"),
    ({"seed": "1"}, SamplingError, "seed: found '1', expected an integer"),
    ({"logit_bias": {65: 10**400}}, SamplingError, "logit_bias: found 'an integer of 1329 bits' for byte 65, expected"),
    (
        {"logit_bias": {10**400: 1.0}},
        SamplingError,
        "logit_bias: found 'an integer of 1329 bits', expected byte values",
    ),
    ({"stop": 5}, ValueError, "stop: found 5, expected bytes, text, or a sequence of them"),
    ({"stop": b""}, ValueError, "stop: found an empty string, expected at least one byte"),
    ({"stop": "a\ud800"}, ValueError, r"stop: found .\\ud800. at 1, half of a surrogate pair"),
    ({"stop": [""]}, ValueError, "stop: found an empty string, expected at least one byte"),
    ({"stop": bytearray(b"ab")}, ValueError, "stop: found 97, expected bytes, text"),
    ({"stop": itertools.repeat("x")}, ValueError, "stop: found more than 1024 strings, expected at most so many"),
    ({"stop": ["x" * 2**20, "y"]}, ValueError, "stop: found 1048577 bytes, expected at most 1048576 in all strings"),
    ({"stop": [b"x", b""]}, ValueError, "stop: found an empty string, expected at least one byte"),
    ({"stop": [5]}, ValueError, "stop: found 5, expected bytes, text, or a sequence of them"),
    ({"stop": None}, ValueError, "stop: found None, expected bytes, text"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_field_out_of_range_is_one_clear_error(bad: dict[str, Any], error: type[ValueError], message: str) -> None:
    with pytest.raises(error, match=message) as found:
        GenerationRequest(**bad)
    assert str(found.value).isprintable()


@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_field_out_of_range_leaves_a_stream_alone(
    scripted: Scripted, bad: dict[str, Any], error: type[ValueError], message: str
) -> None:
    runtime = BltRuntime(scripted(TEXT))
    stream = runtime.stream(TEXT[:5], 20, method="ar")
    text = next(stream).data
    for call in (runtime.generate, runtime.stream):
        with pytest.raises(error):
            call(b"x", **bad)
    assert text + b"".join(chunk.data for chunk in stream) == TEXT[5:25]


def test_numbers_of_numpy_are_numbers() -> None:
    request = GenerationRequest(np.int64(3), top_k=np.int32(2), seed=np.uint8(1), temperature=np.float32(0.5))  # type: ignore[arg-type]
    assert type(request.max_new_bytes) is int
    request.sampler()


def test_generate_takes_a_request_keywords_or_both(scripted: Scripted) -> None:
    runtime = BltRuntime(scripted(TEXT))
    request = GenerationRequest(40, method="s:3", stop="fox")
    expected = TEXT[5 : TEXT.index(b"fox")]
    assert runtime.generate(TEXT[:5], request=request).data == expected
    assert runtime.generate(TEXT[:5], 40, method="s:3", stop="fox").data == expected
    assert runtime.generate(TEXT[:5], 7, request=request).data == TEXT[5:12]
    assert runtime.generate(TEXT[:5], request=request, stop=()).data == TEXT[5:45]
    assert b"".join(chunk.data for chunk in runtime.stream(TEXT[:5], request=request)) == expected


def test_request_of_another_type_and_unknown_option_are_refused(scripted: Scripted) -> None:
    runtime = BltRuntime(scripted(TEXT))
    wrong: Any = {"max_new_bytes": 3}
    with pytest.raises(ValueError, match="request: found dict, expected a GenerationRequest"):
        runtime.generate(TEXT[:5], request=wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_new_tokens'"):
        runtime.generate(TEXT[:5], max_new_tokens=3)  # type: ignore[call-arg]


def test_request_with_a_bytearray_hashes_too() -> None:
    banned: Any = bytearray(b"ab")
    assert hash(GenerationRequest(banned_bytes=banned)) == hash(GenerationRequest(banned_bytes=b"ab"))


def test_default_method_of_generate_is_adaptive(scripted: Scripted) -> None:
    found = BltRuntime(scripted(TEXT)).generate(TEXT[:5], 40)
    assert found.data == TEXT[5:45]
    assert found.stats.drafted > 0


def test_method_object_generates(scripted: Scripted) -> None:
    runtime = BltRuntime(scripted(TEXT))
    found = runtime.generate(TEXT[:5], 40, method=parse_method("s:4"))
    assert found.data == TEXT[5:45]
    assert found.stats.drafted == 4 * (found.stats.rounds - 1)


def test_bias_is_by_byte_value_and_leaves_special_tokens_alone() -> None:
    bias = GenerationRequest(logit_bias={0: 2.0, 255: -1.0}, banned_bytes=b"AA")._token_bias()
    assert bias is not None
    expected = np.zeros(260)
    expected[[4, 259, 69]] = 2.0, -1.0, -np.inf
    assert bias.tolist() == expected.tolist()
