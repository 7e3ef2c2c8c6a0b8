"""Templates turn messages into prompts, and can do nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastblt.models.tokens import BOS_ID, EOS_ID, encode
from fastblt.runtime.serving.chat_template import ChatTemplate, ChatTemplateError, load_template

MESSAGES = [{"role": "user", "content": "Hello {{ 1 + 1 }}"}, {"role": "assistant", "content": "é"}]


def test_the_default_is_plain() -> None:
    assert load_template(None).render(MESSAGES, 100) == "user: Hello {{ 1 + 1 }}\nassistant: é\nassistant:"


def test_what_templates_of_checkpoints_use() -> None:
    source = """{{ bos_token }}
{%- for message in messages -%}
    {%- if loop.index > 9 %}{% break %}{% endif -%}
    [{{ message['role'] | upper }}] {{ message['content'] | trim }}{{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt %}[ASSISTANT]{{ {'a': 'ü'} | tojson }}{% endif -%}"""
    prompt = ChatTemplate(source).render(MESSAGES, 100)
    eos = np.array([EOS_ID])
    parts = [b"[USER] Hello {{ 1 + 1 }}", "[ASSISTANT] é".encode(), '[ASSISTANT]{"a": "ü"}'.encode()]
    first, second, third = (encode(part, bos=False) for part in parts)
    assert not isinstance(prompt, str | bytes)
    assert prompt.tolist() == np.concatenate([[BOS_ID], first, eos, second, eos, third]).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", '{"b": "ü", "a": 1}'),
        ("(ensure_ascii=False, sort_keys=True)", '{"a": 1, "b": "ü"}'),
        ("(ensure_ascii=True, separators=(',', ':'))", '{"b":"\\u00fc","a":1}'),
        ("(True, 1)", '{\n "b": "\\u00fc",\n "a": 1\n}'),
    ],
)
def test_json_in_templates_has_the_options_of_hugging_face(options: str, expected: str) -> None:
    assert ChatTemplate("{{ {'b': 'ü', 'a': 1} | tojson" + options + " }}").render([], 100) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages|attr('__class__') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(100000) %}xxxxxxxxxxxxxxxx{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[7].content.x }}",
        "{{ 1 // 0 }}",
        "{{ raise_exception('only one message') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    assert written(source) == ""  # what is forbidden is refused, or undefined and writes nothing


def written(source: str) -> object:
    """What a template writes; nothing where it fails."""
    try:
        return ChatTemplate(source, "x.jinja").render(MESSAGES, 1000)
    except ChatTemplateError as error:
        return "" if "\n" not in str(error) and len(str(error)) < 300 else error


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="found no template, expected chat_template"):
        load_template(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert load_template(tmp_path).render([], 10) == "one"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert load_template(tmp_path).render([], 10) == load_template(settings).render([], 10) == "two"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert load_template(tmp_path).render([], 10, tools) == "tools"
    settings.write_text(json.dumps({"chat_template": [*named[1:], {"name": "tool_use", "template": 5}]}))
    with pytest.raises(ChatTemplateError, match="found 5 as the chat_template tool_use, expected text"):
        load_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("three")
    assert load_template(tmp_path).render([], 10) == "three"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jinja", b"{% for %}", "found a malformed template"),
        ("x.jinja", b"\xff", "found bytes that are no UTF-8"),
        ("x.json", b"{", "not JSON"),
        ("x.json", b'{"chat_template": 5}', "found no chat_template"),
        ("x.json", b"[]", "found no chat_template"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ChatTemplateError, match=expected) as found:
        load_template(tmp_path / name)
    assert str(tmp_path / name) in str(found.value)
