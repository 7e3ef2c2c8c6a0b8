"""The server keeps texts in the form that is asked for, many at a time; so does what transformers' users call."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from fakes.served import error_of, serve, wait_until

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.grammar import library
from fastblt.runtime.serving.settings import ServingSettings

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "color": {"enum": ["red", "green"]}},
    "required": ["name", "color"],
    "additionalProperties": False,
}
FORMS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}},
    {"regex": "[0-9]{2}é+x?"},
    {"grammar": 'start: "(" /[a-c]{1,3}/ ")"'},
    {"choice": ["yes", "no", "日本"]},
)


@pytest.fixture(scope="module")
def client(served: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_the_official_client_gets_json(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "A thing?"}],
        max_tokens=64,
        response_format=FORMS[0]["response_format"],
    )
    assert found.choices[0].finish_reason == "stop"
    assert set(json.loads(found.choices[0].message.content or "")) == {"name", "color"}


@pytest.mark.parametrize("method", ["ar", "s:8", "dv:4@one", "auto"])
def test_texts_of_many_forms_grow_together(served: Any, reference: BltRuntime, method: str) -> None:
    wanted = [{**form, "prompt": prompt} for form in (*FORMS, {}) for prompt in ("a", "In the", "")]

    def ask(fields: dict[str, Any]) -> str:
        body = {"model": "tiny", "max_tokens": 48, "temperature": 0, "method": method, **fields}
        answer = served.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, wanted))
    for text, fields in zip(texts, wanted, strict=True):
        form = {name: value for name, value in fields.items() if name != "prompt"}
        assert text == reference.generate(fields["prompt"], 48, method="ar", **form).text, fields


#: A grammar whose seventh byte has more alternatives than a step of the parser may have.
WIDE = "start: /[ab]{6}/ wide\nwide: " + " | ".join(f'"{number}" "y"' for number in range(2500))


@pytest.mark.parametrize("method", ["ar", "s:8"])
def test_a_form_that_fails_within_a_text_is_one_error_and_frees_its_place(
    served: Any, reference: BltRuntime, method: str
) -> None:
    def ask(**fields: Any) -> Any:
        body = {"model": "tiny", "prompt": "In the", "max_tokens": 24, "temperature": 0, "method": method, **fields}
        return served.http.post("/v1/completions", json=body)

    with ThreadPoolExecutor(3) as pool:
        whole, streamed, beside = pool.submit(ask, grammar=WIDE), pool.submit(ask, grammar=WIDE, stream=True), ask()
    error = error_of(whole.result())
    assert error["code"] == "form_failed"
    assert "the form of the text failed after" in error["message"]
    assert "Current row has 2501 items; max is 2000" in error["message"]
    *_, last = [line for line in streamed.result().text.splitlines() if line.startswith("data:")]
    assert json.loads(last.removeprefix("data:"))["error"]["code"] == "form_failed"
    served.wait_idle()
    expected = reference.generate("In the", 24, method="ar").text
    assert [each.json()["choices"][0]["text"] for each in (beside, ask())] == [expected] * 2


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """An event that is set when a grammar is about to be compiled, and one that lets it be."""
    begun, allowed = threading.Event(), threading.Event()
    compiled = library._compile

    def held(kind: library.Kind, source: str) -> Any:
        begun.set()
        assert allowed.wait(20)
        return compiled(kind, source)

    with monkeypatch.context() as patch:
        patch.setattr(library, "_compile", held)
        yield begun, allowed
        allowed.set()


def test_nobody_waits_for_the_form_of_another(served: Any, compiling: tuple[threading.Event, threading.Event]) -> None:
    begun, allowed = compiling
    kept = {"prompt": "a", "max_tokens": 8, "regex": "x{2}"}
    with ThreadPoolExecutor(2) as pool:
        allowed.set()
        assert served.http.post("/v1/completions", json=kept).json()["choices"][0]["text"] == "xx"
        allowed.clear()
        begun.clear()
        slow = pool.submit(served.http.post, "/v1/completions", json={**kept, "regex": "x{3}"})
        assert begun.wait(20)
        assert served.http.get("/health").status_code == 200
        assert served.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
        assert served.http.post("/v1/completions", json=kept).json()["choices"][0]["text"] == "xx"
        assert not slow.done()
        allowed.set()
        assert slow.result().json()["choices"][0]["text"] == "xxx"


def test_the_time_of_a_request_includes_that_of_its_form(
    runtime: BltRuntime, compiling: tuple[threading.Event, threading.Event]
) -> None:
    begun, allowed = compiling
    with serve(runtime, ServingSettings(timeout=2.0)) as hurried:
        body = {"prompt": "a", "max_tokens": 2, "regex": "hurried"}
        error = error_of(hurried.http.post("/v1/completions", json=body), 504)
        assert begun.is_set()
        assert error["code"] == "timeout"
        assert error["message"] == "after 2 s: found a form that is not compiled yet, expected it to be"
        assert not hurried.host.idle, "a thread still compiles it"
        plain = {"prompt": "a", "max_tokens": 2, "response_format": {"type": "text"}}
        assert hurried.http.post("/v1/completions", json=plain).status_code == 200
        assert hurried.host._compiling == 1
        allowed.set()
        wait_until(lambda: hurried.host.idle)


def test_as_many_forms_wait_to_be_compiled_as_texts_for_a_place(
    runtime: BltRuntime, compiling: tuple[threading.Event, threading.Event]
) -> None:
    _, allowed = compiling
    with serve(runtime, ServingSettings(queue=1)) as small, ThreadPoolExecutor(5) as pool:

        def ask(number: int) -> Any:
            body = {"prompt": "a", "max_tokens": 2, "regex": f"queued{number}", "temperature": 0}
            return small.http.post("/v1/completions", json=body)

        waiting = [pool.submit(ask, number) for number in range(runtime.sequences + 1)]
        wait_until(lambda: small.host._compiling == runtime.sequences + 1)
        refused = error_of(ask(9), 429)
        assert (refused["code"], refused["message"][:35]) == ("queue_full", "found 5 forms that wait to be compi")
        allowed.set()
        assert {each.result().status_code for each in waiting} == {200}


def test_a_server_that_is_ending_waits_for_the_form_it_compiles_and_compiles_no_other(
    runtime: BltRuntime, compiling: tuple[threading.Event, threading.Event]
) -> None:
    begun, allowed = compiling
    with serve(runtime) as ending, ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a", "max_tokens": 2, "regex": "y{2}"}
        late = pool.submit(ending.http.post, "/v1/completions", json=body)
        assert begun.wait(20)
        assert not ending.host.idle
        ending.host.drain()
        assert error_of(ending.http.post("/v1/completions", json={**body, "regex": "y{3}"}), 503)["code"] == "draining"
        assert not late.done()
        allowed.set()
        assert error_of(late.result(), 503)["code"] == "draining"
        wait_until(lambda: ending.host.idle)
