"""The official client drives every endpoint, and gets the bytes that the runtime writes."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest

from fastblt.runtime.blt_runtime import BltRuntime

PROMPT = "In the beginning "
GREEDY: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def client(served: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def data_of(choice: Any) -> bytes:
    return base64.b64decode(choice.bytes)


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "fastblt")
    facts: Any = client.models.retrieve("tiny").fastblt  # type: ignore[attr-defined]
    assert facts["max_bytes"] == 640
    assert facts["sequences"] == 4
    assert facts["default_method"] == "auto"
    assert {"ar", "s:8", "auto"} <= set(facts["methods"])
    with pytest.raises(openai.NotFoundError) as found:
        client.models.retrieve("another/model")
    assert found.value.code == "model_not_found"


@pytest.mark.parametrize("method", ["ar", "s:8", "dv:4@one", "d:4@0.7", "auto", None])
def test_completion_is_what_the_runtime_writes(
    client: openai.OpenAI, reference: BltRuntime, method: str | None
) -> None:
    expected = reference.generate(PROMPT, 24, method=method or "auto")
    extra = {"return_bytes": True} | ({"method": method} if method else {})
    found = client.completions.create(prompt=PROMPT, extra_body=extra, **GREEDY)
    [choice] = found.choices
    assert data_of(choice) == expected.data
    assert choice.text == expected.text
    assert choice.finish_reason == {"length": "length", "eos": "stop"}[expected.finish]
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(PROMPT)
    assert found.usage.completion_tokens == len(expected.data)
    assert found.usage.total_tokens == len(PROMPT) + len(expected.data)
    assert found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens is not None
    if method == "s:8":
        counts = found.usage.completion_tokens_details
        assert counts is not None
        assert counts.accepted_prediction_tokens == expected.stats.accepted
        assert counts.rejected_prediction_tokens == expected.stats.drafted - expected.stats.accepted


def test_drafts_that_are_cut_count_as_far_as_the_text_goes(client: openai.OpenAI) -> None:
    for length in range(1, 6):
        found = client.completions.create(
            prompt=PROMPT, extra_body={"method": "s:8"}, **{**GREEDY, "max_tokens": length}
        )
        assert found.usage is not None
        assert found.usage.completion_tokens_details is not None
        accepted = found.usage.completion_tokens_details.accepted_prediction_tokens
        assert accepted is not None
        assert accepted <= found.usage.completion_tokens == length


def test_stream_is_the_same_text_in_pieces(client: openai.OpenAI, reference: BltRuntime) -> None:
    expected = reference.generate(PROMPT, 24, method="s:8")
    extra = {"method": "s:8", "return_bytes": True, "fastblt": {"details": True}}
    options: Any = {"include_usage": True}
    events = list(
        client.completions.create(prompt=PROMPT, stream=True, stream_options=options, extra_body=extra, **GREEDY)
    )
    *pieces, ending, last = events
    assert "".join(event.choices[0].text for event in events[:-1]) == expected.text
    assert b"".join(data_of(event.choices[0]) for event in pieces) == expected.data
    details: list[Any] = [event.choices[0].fastblt for event in pieces]  # type: ignore[attr-defined]
    assert b"".join(base64.b64decode(each["bytes"]) for each in details) == expected.data
    assert sum(len(each["origins"]) for each in details) == len(expected.data)
    rejected = sum(len(base64.b64decode(each["rejected"])) for each in details)
    assert rejected == expected.stats.drafted - expected.stats.accepted
    assert ending.choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    costs: Any = last.fastblt  # type: ignore[attr-defined]
    assert costs["method"] == "s:8"
    assert costs["rounds"] == expected.stats.rounds
    assert costs["drafted"] == expected.stats.drafted
    assert costs["calls"]["decoder"] == expected.stats.nfe["decoder"]
    assert 0 < costs["first_byte_seconds"] <= costs["total_seconds"]
    assert all(event.usage is None for event in events[:-1])


def test_chat(client: openai.OpenAI, reference: BltRuntime) -> None:
    parts: Any = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    expected = reference.generate("system: Be brief.\nuser: hi\nassistant:", 24, method="auto")
    found = client.chat.completions.create(messages=messages, extra_body={"return_bytes": True}, **GREEDY)
    [choice] = found.choices
    assert choice.message.content == expected.text
    assert data_of(choice.message) == expected.data
    assert choice.message.role == "assistant"
    options: Any = {"model": "tiny", "max_completion_tokens": 24, "temperature": 0, "messages": messages}
    first, *rest = client.chat.completions.create(stream=True, **options)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in rest) == expected.text
    assert rest[-1].choices[0].finish_reason == choice.finish_reason


def test_sampling_is_the_runtime_s(client: openai.OpenAI, reference: BltRuntime) -> None:
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    bias = {104: 3.5, 32: -100.0}
    found = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=24,
        n=2,
        logit_bias={str(byte): value for byte, value in bias.items()},  # type: ignore[misc, arg-type]
        extra_body={"top_k": 50, "min_p": 0.01, "return_bytes": True},
        **options,
    )
    more: dict[str, Any] = {"top_k": 50, "min_p": 0.01, "logit_bias": bias, "temperature": 0.8, "top_p": 0.9}
    expected = [reference.generate(PROMPT, 24, seed=seed, **more).data for seed in (7, 8)]
    assert [data_of(choice) for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(PROMPT)


def test_prompts_of_every_form(client: openai.OpenAI, reference: BltRuntime) -> None:
    extra = {"return_bytes": True, "method": "ar"}
    texts = ["one", "two"]
    expected = [reference.generate(each, 24, method="ar").data for each in texts]
    forms: list[Any] = [texts, [list(each.encode()) for each in texts]]
    for form in forms:
        found = client.completions.create(prompt=form, extra_body=extra, **GREEDY)
        assert [data_of(choice) for choice in found.choices] == expected
    raw = [0xE2, 0x82, 0xFF, 0]
    found = client.completions.create(prompt=raw, extra_body=extra, **GREEDY)
    assert data_of(found.choices[0]) == reference.generate(bytes(raw), 24, method="ar").data


def test_stop_echo_and_logprobs(client: openai.OpenAI, reference: BltRuntime) -> None:
    plain = reference.generate("abc", 24, method="ar", logit_bias={120: 100.0}, logprobs=True)
    assert plain.data == b"x" * 24
    bias: Any = {"120": 100}
    found = client.completions.create(prompt="abc", logprobs=1, logit_bias=bias, **GREEDY)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["x"] * 24
    assert logprobs.token_logprobs == pytest.approx(list(plain.logprobs), abs=1e-4)
    assert logprobs.text_offset == list(range(24))
    found = client.completions.create(prompt="abc", stop=["xxx", "q"], echo=True, logit_bias=bias, **GREEDY)
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("abc", "stop")
    text = "".join(
        event.choices[0].text
        for event in client.completions.create(prompt="abc", echo=True, logit_bias=bias, stream=True, **GREEDY)
    )
    assert text == "abc" + 24 * "x"
    messages: Any = [{"role": "user", "content": "a"}]
    chat = client.chat.completions.create(messages=messages, logprobs=True, logit_bias=bias, **GREEDY)
    content = chat.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert [(each.token, each.bytes) for each in content.content] == [("x", [120])] * 24


def test_a_second_turn_reads_only_what_is_new(client: openai.OpenAI) -> None:
    first = "A conversation that has begun, and goes on. "
    client.completions.create(prompt=first, **GREEDY)
    found = client.completions.create(prompt=first + "Indeed.", **GREEDY)
    assert found.usage is not None
    assert found.usage.prompt_tokens_details is not None
    assert (found.usage.prompt_tokens_details.cached_tokens or 0) >= len(first) - 1


def test_async_client_gets_many_texts_at_once(served: Any, reference: BltRuntime) -> None:
    prompts = [f"Number {i}: " for i in range(9)]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(prompt: str, stream: bool) -> str:
                if not stream:
                    return (await client.completions.create(prompt=prompt, **GREEDY)).choices[0].text
                events: Any = await client.completions.create(prompt=prompt, stream=True, **GREEDY)
                return "".join([event.choices[0].text async for event in events])

            return await asyncio.gather(*(one(prompt, i % 2 == 0) for i, prompt in enumerate(prompts)))

    assert asyncio.run(ask()) == [reference.generate(prompt, 24).text for prompt in prompts]
    served.wait_idle()


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="expected at most 640 bytes in all") as found:
        client.completions.create(model="tiny", prompt="a", max_tokens=640)
    assert (found.value.code, found.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.BadRequestError, match="method 'x': unknown") as found:
        client.completions.create(model="tiny", prompt="a", extra_body={"method": "x"})
    assert found.value.param == "method"
    with pytest.raises(openai.NotFoundError, match="expected 'tiny'"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="presence_penalty") as found:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], presence_penalty=0.5)
    assert found.value.code == "unsupported_value"
    assert found.value.request_id
