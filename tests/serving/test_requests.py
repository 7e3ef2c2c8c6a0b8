"""Requests that cannot be answered get one error in OpenAI's body, whatever is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.served import error_of
from pydantic import BaseModel, ValidationError

from fastblt.runtime.serving.chat_requests import ChatRequest
from fastblt.runtime.serving.requests import CompletionRequest

#: Requests with many things that are wrong with them.
WRONG_OFTEN: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (CompletionRequest, {"prompt": [300] * 1000}),
    (CompletionRequest, {"prompt": [[300] * 1000] * 100}),
    (CompletionRequest, {"prompt": "a", **{f"field{i}": 1 for i in range(1000)}}),
    (CompletionRequest, {"prompt": "a", "logit_bias": {f"byte{i}": 1 for i in range(1000)}}),
    (ChatRequest, {"messages": [{f"field{i}": 1} for i in range(1000)]}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 1000}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "metadata": {str(i): i for i in range(1000)}}),
]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [1, 300]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": "\ud800"}, "prompt", "invalid_value"),
        ({"prompt": "a" * 640}, "prompt", "context_length_exceeded"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**63}, "max_tokens", "invalid_value"),
        ({"max_tokens": 640}, "max_tokens", "context_length_exceeded"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_k": -1}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": "\udfff"}, "stop", "invalid_value"),
        ({"logit_bias": {"256": 1}}, "logit_bias.256.[key]", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a.[key]", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": 4, "prompt": ["a", "b", "c"]}, "n", "invalid_value"),
        ({"logprobs": 5}, "logprobs", "invalid_value"),
        ({"logprobs": 0, "echo": True}, "echo", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"method": "s:0"}, "method", "invalid_value"),
        ({"method": "dv:64@one"}, "method", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_value"),
        ({"suffix": "x"}, "suffix", "unsupported_value"),
        ({"presence_penalty": 1}, "presence_penalty", "unsupported_value"),
        ({"frequency_penalty": -0.1}, "frequency_penalty", "unsupported_value"),
        ({"fastblt": {"detail": True}}, "fastblt.detail", "unknown_parameter"),
        ({"tempurature": 1}, "tempurature", "unknown_parameter"),
        ({"model": 5}, "model", "invalid_value"),
    ],
)
def test_completions_that_cannot_be(served: Any, fields: dict[str, Any], param: str, code: str) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 2, **fields})
    response = served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    error = error_of(response)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["a"] * 5}, "stop: found ['a', 'a', 'a', 'a', 'a'], list should have at most 4 items"),
        ({"stop": ["a", ""]}, "stop[1]: found '', string should have at least 1 character"),
        ({"prompt": [1, 256]}, "prompt[1]: found 256, expected less than or equal to 255"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]: found -1, expected greater than or equal to 0"),
        ({"prompt": []}, "prompt: found [], list should have at least 1 item"),
        ({"prompt": ["a", 1]}, "prompt[1]: found 1, expected a valid string"),
        ({"prompt": 5}, "prompt: found 5, expected a valid string"),
        ({"logit_bias": {"300": 1}}, "logit_bias.300.[key]: found '300', expected a byte value from 0 to 255"),
    ],
)
def test_messages_are_about_the_type_that_fits_best(served: Any, fields: dict[str, Any], message: str) -> None:
    error = error_of(served.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, **fields}))
    assert error["message"].startswith(message)


def test_a_chat_that_is_too_long(served: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "a" * 5000}]}
    error = error_of(served.http.post("/v1/chat/completions", json=chat))
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert error["message"].startswith("messages: found more than")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_call_id": "b"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "invalid_value",
        ),
        ({"top_logprobs": 2, "logprobs": True}, "top_logprobs", "unsupported_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
            "response_format",
            "invalid_value",
        ),
        ({"regex": "("}, "regex", "invalid_value"),
        ({"regex": "a", "choice": ["a"]}, "regex", "invalid_value"),
        ({"regex": "a", "stop": "a"}, "stop", "invalid_value"),
        ({"regex": "a", "method": "d:4"}, "method", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "invalid_value"),
        ({"store": True}, "store", "unsupported_value"),
    ],
)
def test_chats_that_cannot_be(served: Any, fields: dict[str, Any], param: str, code: str) -> None:
    error = error_of(served.http.post("/v1/chat/completions", json={**CHAT, **fields}))
    assert (error["param"], error["code"]) == (param, code)


def test_values_that_ask_for_nothing_are_accepted(served: Any) -> None:
    nothing = {
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "user": "somebody",
        "stream": False,
        "service_tier": "auto",
        "stop": None,
        "seed": None,
        "max_tokens": 2,
    }
    completion = {"prompt": "a", "best_of": 1, "suffix": None, "logprobs": None, "echo": False}
    assert served.http.post("/v1/completions", json={**nothing, **completion}).status_code == 200
    chat = {
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "top_logprobs": None,
        "store": False,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
    }
    assert served.http.post("/v1/chat/completions", json={**CHAT, **nothing, **chat}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "max_tokens": 1e999}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_bodies_that_are_no_request(served: Any, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = served.http.post(path, content=body, headers={"Content-Type": "application/json"})
        error = error_of(response)
        assert "found" in error["message"] or "not JSON (" in error["message"]
        assert "expected" in error["message"]


def test_a_form_is_no_request(served: Any) -> None:
    headers = {"Content-Type": "text/plain"}  # what pages of other origins may send without asking
    error = error_of(served.http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers))
    assert error["message"] == "body: found no JSON object, expected one (Content-Type: application/json)"


def test_paths_and_methods(served: Any) -> None:
    assert error_of(served.http.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(served.http.post("/nothing"), 404)["code"] == "not_found"
    assert error_of(served.http.get("/../../etc/passwd"), 404)["code"] == "not_found"
    assert error_of(served.http.get("/page/index.html"), 404)["code"] == "not_found"
    response = served.http.get("/v1/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


def test_the_page_and_its_files(served: Any) -> None:
    page = served.http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    again = served.http.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css")):
        assert served.http.get(f"/{name}").headers["content-type"].startswith(kind)


def test_ids_come_back(served: Any) -> None:
    assert served.http.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for strange in ("a b", "x" * 65, "<script>"):
        found = served.http.get("/health", headers={"X-Request-Id": strange}).headers["x-request-id"]
        assert found.startswith("req_")


def test_probes_and_figures(served: Any) -> None:
    assert served.http.get("/health").json() == {"status": "ok"}
    assert served.http.get("/ready").json() == {"status": "ready"}
    before = figures(served)
    served.http.post("/v1/completions", json={"prompt": "figures", "max_tokens": 9, "method": "s:4", "temperature": 0})
    served.http.post("/v1/completions", json={"prompt": "figures", "max_tokens": -9})
    served.wait_idle()
    after = figures(served)

    def grown(name: str) -> float:
        return after.get(f"fastblt_{name}", 0.0) - before.get(f"fastblt_{name}", 0.0)

    assert grown("prompt_bytes_total") == 7
    assert 0 < grown("generated_bytes_total") <= 9
    assert grown("drafted_bytes_total") >= grown("accepted_bytes_total") >= 0
    assert grown('calls_total{part="decoder"}') > 0
    assert grown("first_byte_seconds_count") == grown("text_seconds_count") == 1
    assert grown('requests_total{path="/v1/completions",status="200"}') == 1
    assert grown('errors_total{code="invalid_value"}') == 1
    assert after["fastblt_ready"] == 1
    assert after["fastblt_places"] == 4
    assert after["fastblt_places_in_use"] == after["fastblt_queue_length"] == 0


def figures(served: Any) -> dict[str, float]:
    response = served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize(("kind", "fields"), WRONG_OFTEN)
def test_who_makes_many_mistakes_gets_few_errors(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as found:  # an error for each would take a minute of 4 MiB of them
        kind.model_validate(fields)
    assert found.value.error_count() <= 8


def test_too_many_fields_are_one_error(served: Any) -> None:
    response = served.http.post("/v1/completions", json={f"field{i}": 1 for i in range(257)})
    assert error_of(response)["message"] == "body: found 257 entries, expected at most 256"
