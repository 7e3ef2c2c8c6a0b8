"""Requests made from the server's own schema never meet a defect, and every answer is what the schema has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
import pytest
import schemathesis
from fakes.served import Served
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

TEXTS = [("POST", "/v1/completions"), ("POST", "/v1/chat/completions")]
OTHERS = [("GET", path) for path in ("/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics")]
CHECKS: list[Any] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    return schemathesis.openapi.from_dict(served.app.openapi())


def without_tools(message: dict[str, Any]) -> dict[str, Any]:
    """What a message of any role may have; calls and their results are for some."""
    kept = {name: value for name, value in message.items() if not name.startswith("tool_call")}
    role = "user" if message["role"] == "tool" else message["role"]
    return {**kept, "role": role, "content": message.get("content") or ""}


def statuses(
    served: Served, operation: Any, mode: GenerationMode, examples: int, *, short: bool = False
) -> Counter[int]:
    """Send requests of a kind, check the answers, and count them by status."""
    found: Counter[int] = Counter()

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if short:  # what the schema cannot know: the model's name, its methods, how much there is room for
            case.body.update({"model": "tiny", "method": "s:4", "max_tokens": 6, "n": 2, "stop": None})
            case.body.update({"stream_options": None} if not case.body.get("stream") else {})
            case.body.update({"echo": None} if case.body.get("logprobs") is not None else {})
            case.body.update(dict.fromkeys(("response_format", "regex", "grammar", "choice")))
            case.body.pop("max_completion_tokens", None)
            if "messages" in case.body:
                case.body.update({"tools": None, "tool_choice": None})
                case.body["messages"] = [without_tools(message) for message in case.body["messages"]]
        response = case.call(base_url=served.url)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code < 500, response.text
        found[response.status_code] += 1

    run()
    return found


def test_the_schema_lists_what_there_is(served: Served) -> None:
    paths = served.app.openapi()["paths"]
    assert sorted((method.upper(), path) for path, item in paths.items() for method in item) == sorted(TEXTS + OTHERS)
    assert "422" not in str(paths)


@pytest.mark.parametrize(("method", "path"), OTHERS)
def test_descriptions_and_probes(served: Served, schema: Any, method: str, path: str) -> None:
    found = statuses(served, schema[path][method], GenerationMode.POSITIVE, 3)
    assert set(found) == ({404} if "{" in path else {200})


@pytest.mark.parametrize(("method", "path"), TEXTS)
def test_texts(served: Served, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    assert set(statuses(served, operation, GenerationMode.POSITIVE, 6)) <= {200, 400, 404}
    assert set(statuses(served, operation, GenerationMode.NEGATIVE, 8)) <= {200, 400, 404}
    answered = statuses(served, operation, GenerationMode.POSITIVE, 8, short=True)
    assert answered[200] >= 2
    assert set(answered) <= {200, 400}
    served.wait_idle()
