"""The server keeps texts in the form that is asked for, many at a time; so does what transformers' users call."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from fastblt.runtime.blt_runtime import BltRuntime

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
