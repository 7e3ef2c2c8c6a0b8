"""The official client has functions called: the arguments fit their schema, whole and in a stream."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
import pytest
from fakes.served import Served, error_of, serve

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving.chat_template import load_template
from fastblt.runtime.serving.responses import ChatChunk, ChatCompletion
from fastblt.runtime.serving.settings import ServingSettings
from fastblt.runtime.serving.tool_calls import CallReader

#: References begin at the root of each schema, not at that of the grammar.
POINT = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["x"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "move": {
        "type": "object",
        "properties": {"to": {"$ref": "#/$defs/point"}, "how": {"enum": ["fast", 'a "}{\\" way', "日本"]}},
        "required": ["to", "how"],
        "additionalProperties": False,
        "$defs": {"point": {**POINT, "additionalProperties": False}},
    },
    "move_by": {
        "type": "object",
        "properties": {"note": {"type": "string", "maxLength": 6}, "deep": {"type": "object", "maxProperties": 0}},
        "required": ["note", "deep"],
        "additionalProperties": False,
    },
    "stop-now": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
#: The schemas take much of the room that the model of the tests has.
FEW: Any = [{"type": "function", "function": {"name": "stop-now"}}]
ASK: Any = [{"role": "user", "content": "Go!"}]


@pytest.fixture(scope="module")
def roomy(tiny_bundle: Path) -> Iterator[Served]:
    """A server with room for descriptions of functions."""
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=2048, sequences=4, threads=1)
    with serve(runtime, ServingSettings(workers=2)) as found:
        yield found


@pytest.fixture(scope="module")
def client(roomy: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{roomy.url}/v1", api_key="none", max_retries=0)


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def options(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ASK, "tools": TOOLS, "max_tokens": 160, **more}


def check(name: str, arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])


@pytest.mark.parametrize("choice", ["required", *SCHEMAS])
@pytest.mark.parametrize("method", ["ar", "s:8", "dv:4@one", "auto"])
def test_a_call_comes_whole_and_in_a_stream(client: openai.OpenAI, choice: str, method: str) -> None:
    wanted = options(
        tool_choice=choice if choice == "required" else named(choice),
        temperature=0.0 if method == "auto" else 1.0,
        seed=3,
        n=2,
        extra_body={"method": method},
    )
    found = client.chat.completions.create(**wanted)
    calls = []
    for answer in found.choices:
        [call] = answer.message.tool_calls or []
        assert (answer.finish_reason, answer.message.content, call.type) == ("tool_calls", None, "function")
        assert choice in ("required", call.function.name)
        check(call.function.name, call.function.arguments)
        calls.append(call)
    assert len({call.id for call in calls}) == 2

    names: list[str] = ["", ""]
    arguments: list[str] = ["", ""]
    ends: list[str | None] = [None, None]
    for event in client.chat.completions.create(stream=True, **wanted):
        [part] = event.choices
        ends[part.index] = part.finish_reason
        assert part.delta.content is None
        for piece in part.delta.tool_calls or []:
            assert piece.index == 0
            assert (piece.id is not None) == (piece.type == "function") == (names[part.index] == "")
            names[part.index] += piece.function.name or ""
            arguments[part.index] += piece.function.arguments or ""
    assert ends == ["tool_calls", "tool_calls"]
    assert list(zip(names, arguments, strict=True)) == [(call.function.name, call.function.arguments) for call in calls]


class Move(pydantic.BaseModel):
    """What the client's own helpers make a tool of."""

    model_config = pydantic.ConfigDict(extra="forbid")
    steps: int
    fast: bool


def test_the_helpers_of_the_client_read_calls(client: openai.OpenAI) -> None:
    wanted = {**options(tool_choice="required", seed=1), "tools": [openai.pydantic_function_tool(Move)]}
    [call] = client.chat.completions.parse(**wanted).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Move)
    with client.chat.completions.stream(**wanted) as stream:
        kinds = {event.type for event in stream}
        [again] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.done" in kinds
    assert again.function.parsed_arguments == call.function.parsed_arguments


def test_a_call_that_length_cuts_is_its_beginning(client: openai.OpenAI) -> None:
    wanted = options(tool_choice=named("stop-now"), temperature=0)
    whole = '{"name":"stop-now","arguments":{}}'
    for length, arguments, finish in ((10, None, "length"), (31, "", "length"), (32, "{", "length")):
        choice = client.chat.completions.create(**{**wanted, "max_tokens": length}).choices[0]
        assert choice.finish_reason == finish
        assert [call.function.arguments for call in choice.message.tool_calls or []] == (
            [] if arguments is None else [arguments]
        )
        *_, last = client.chat.completions.create(stream=True, **{**wanted, "max_tokens": length})
        assert last.choices[0].finish_reason == finish
    extra = {"return_bytes": True}
    choice = client.chat.completions.create(**{**wanted, "max_tokens": len(whole)}, extra_body=extra).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.bytes == "eyJuYW1lIjoic3RvcC1ub3ciLCJhcmd1bWVudHMiOnt9fQ=="  # type: ignore[attr-defined]


def test_the_result_of_a_call_goes_into_the_next_prompt(client: openai.OpenAI, roomy: Served) -> None:
    first = client.chat.completions.create(**options(tool_choice=named("move"), temperature=0))
    message = first.choices[0].message
    [call] = message.tool_calls or []
    messages: Any = [*ASK, message, {"role": "tool", "tool_call_id": call.id, "content": "Done."}]
    rest = options(tool_choice="none", temperature=0, max_tokens=16)
    found = client.chat.completions.create(**{**rest, "messages": messages})
    described = "".join(json.dumps(tool["function"], ensure_ascii=False) + "\n" for tool in TOOLS)
    prompt = (
        f'system: Functions, called by {{"name": NAME, "arguments": {{...}}}}:\n{described}user: Go!\n'
        f'assistant: {{"name":"move","arguments":{call.function.arguments}}}\ntool: Done.\nassistant:'
    )
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt.encode())
    assert found.choices[0].message.content == roomy.host.runtime.generate(prompt, 16).text
    assert (found.choices[0].message.tool_calls, found.choices[0].finish_reason) == (None, "length")


def test_templates_of_checkpoints_see_tools_and_calls(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{% for tool in tools %}[{{ tool.type }} {{ tool['function']['name'] }}]{% endfor %}"
        "{% for message in messages %}{{ message.role }}"
        "{% for call in message.tool_calls %}({{ call.id }} {{ call.function.arguments.x + 1 }}){% endfor %}"
        "{{ message.tool_call_id }};{% endfor %}"
    )
    messages: Any = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"arguments": {"x": 1}}}]},
        {"role": "tool", "content": "", "tool_call_id": "c"},
    ]
    assert load_template(tmp_path).render(messages, 100, FEW) == "[function stop-now]assistant(c 2);toolc;"


def one(parameters: Any) -> Any:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


OBJECT: Any = {"type": "object"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WRONG_CALL = {**CALL, "function": {"name": "f", "arguments": "[1]"}}
INFINITE_CALL = {**CALL, "function": {"name": "f", "arguments": '{"x":-1e999}'}}
FORCED = {"tools": FEW, "tool_choice": "required"}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": FEW}, "tool_choice", "found tools without it, expected 'required', a function, or 'none'"),
        ({"tools": FEW, "tool_choice": "auto"}, "tool_choice", "found 'auto', expected 'required'"),
        ({"tools": FEW, "tool_choice": "any"}, "tool_choice", "found 'any', expected 'none', 'auto' or 'required'"),
        ({"tools": FEW, "tool_choice": {"type": "all"}}, "tool_choice.type", "found 'all', expected 'function'"),
        ({"tools": FEW, "tool_choice": named("g")}, "tool_choice", "found 'g', expected a name among ['stop-now']"),
        ({"tool_choice": "required"}, "tool_choice", "found required without tools, expected tools"),
        ({"tools": [], "tool_choice": named("f")}, "tool_choice", "found a function without tools"),
        ({"tools": FEW * 2, "tool_choice": "none"}, "tools", "tools[1].function.name: found 'stop-now' twice"),
        ({"tools": FEW * 129}, "tools", "at most 128 items"),
        ({"tools": [named("a b")]}, "tools[0].function.name", "found 'a b', string should match pattern"),
        ({"tools": [named("a" * 65)]}, "tools[0].function.name", "should match pattern"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "expected 'function'"),
        ({"tools": one({"type": "string"})}, "tools[0].function.parameters", 'a JSON schema with "type": "object"'),
        ({"tools": one({**OBJECT, "not": {}}), "tool_choice": "required"}, "tools", "tools: parameters of f: json_sch"),
        ({"tools": one({**OBJECT, "title": "x" * 2**17}), "tool_choice": "required"}, "messages", "than 640 bytes"),
        ({**FORCED, "response_format": {"type": "json_object"}}, "response_format", "with a function that has to be"),
        ({**FORCED, "regex": "a"}, "regex", "found it with a function that has to be called, expected one of them"),
        ({**FORCED, "stop": "a"}, "stop", "found it with a function that has to be called"),
        ({**FORCED, "method": "d:4@one"}, "method", "expected a method that verifies its bytes"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [WRONG_CALL]}]},
            "messages[0].tool_calls[0].function.arguments",
            "found '[1]', expected the JSON of an object",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [INFINITE_CALL]}]},
            "messages[0].tool_calls[0].function.arguments",
            "expected the JSON of an object with finite numbers",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
            "messages[0].tool_calls",
            "expected none: only the assistant calls",
        ),
    ],
)
def test_tools_that_cannot_be(served: Served, fields: dict[str, Any], param: str, message: str) -> None:
    error = error_of(served.http.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 2, **fields}))
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert message in error["message"]


def test_what_asks_for_no_tool_is_accepted(served: Served) -> None:
    for fields in ({"tools": [], "tool_choice": "auto"}, {"tools": FEW, "tool_choice": "none", "stop": "a"}):
        body = {"messages": ASK, "max_tokens": 2, "parallel_tool_calls": True, **fields}
        assert served.http.post("/v1/chat/completions", json=body).status_code == 200
    formed = {**FORCED, "stop": [], "response_format": {"type": "text"}, "max_tokens": 64}
    for tools, name in ((FEW, "stop-now"), (one(None), "f"), (one({}), "f")):
        answer = served.http.post("/v1/chat/completions", json={"messages": ASK, **formed, "tools": tools}).json()
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": name, "arguments": "{}"}


def test_answers_with_everything_that_can_be_asked_for_are_what_the_schema_has(served: Served) -> None:
    more = {"max_tokens": 64, "logprobs": True, "return_bytes": True, "fastblt": {"details": True}, "method": "s:8"}
    body = {"messages": ASK, **FORCED, **more}
    whole = served.http.post("/v1/chat/completions", json=body)
    answer = ChatCompletion.model_validate_json(whole.content)
    call = '{"name":"stop-now","arguments":{}}'
    assert answer.choices[0].logprobs is not None
    assert "".join(each.token for each in answer.choices[0].logprobs.content) == call
    streamed = served.http.post("/v1/chat/completions", json={**body, "stream": True}).text
    *events, done = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: ")]
    chunks = [ChatChunk.model_validate_json(event) for event in events]
    found = [part.delta.bytes for chunk in chunks for part in chunk.choices if part.delta.bytes]
    assert b"".join(map(base64.b64decode, found)) == call.encode()
    assert done == "[DONE]"


def test_arguments_end_where_their_first_brace_is_closed() -> None:
    arguments = '{"a":{"b":"}\\\\"},"c":"{\\"é"}'
    call = CallReader()
    assert "".join(call.read(character) for character in f'{{"name":"f","arguments":{arguments}}}') == arguments
    assert (call.name, call.finish("length")) == ("f", "tool_calls")
