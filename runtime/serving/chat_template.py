"""Turns the messages of a chat into a prompt, by a template that can do nothing but that.

Templates come with checkpoints, from people whom nobody has to trust: they run in Jinja's sandbox, see the messages
and tools and nothing else, and end when what they write is too long.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastblt.models.limits import JSON_BYTES
from fastblt.models.reading import read_json, read_text
from fastblt.models.shown import shown
from fastblt.models.tokens import BOS_ID, EOS_ID, encode
from fastblt.runtime.generation import Prompt

#: Files of a checkpoint with a template, in the order in which they are looked for.
TEMPLATE_FILE, TOKENIZER_FILE = "chat_template.jinja", "tokenizer_config.json"
#: For models that come without a template.
PLAIN = """
{%- if tools %}system: Functions, called by {"name": NAME, "arguments": {...}}:{{ "\\n" }}
{%- for tool in tools %}{{ tool.function | tojson }}{{ "\\n" }}{% endfor %}
{%- endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls or () %}{{ call.function | tojson(separators=(",", ":")) }}{% endfor %}{{ "\\n" }}
{%- endfor %}assistant:"""


class ChatTemplateError(ValueError):
    """Reports a template that cannot be used, or that refuses the messages."""


class LongChatError(ChatTemplateError):
    """Reports messages that make a longer prompt than there is room for."""


class ChatTemplate:
    """Renders messages.

    Args:
        source: the template, in Jinja's language.
        name: where it is from, for errors.
        with_tools: the template for chats with tools; None: the same.

    Raises:
        ChatTemplateError: one of them is malformed.
    """

    def __init__(self, source: str = PLAIN, name: str = "the default template", with_tools: str | None = None) -> None:
        self.name = name
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json
        try:
            self._template: Template = environment.from_string(source)
            self._with_tools = self._template if with_tools is None else environment.from_string(with_tools)
        except (TemplateError, RecursionError) as error:
            raise ChatTemplateError(f"{name}: found a malformed template ({_line(error)}), expected Jinja") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], longest: int, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Prompt:
        """Return the prompt that messages make.

        ``eos_token`` of a template becomes the end-of-document token. ``bos_token`` is empty: every prompt begins with
        that token anyway.

        Args:
            messages: role and content of each; calls and what they answer, as templates of Hugging Face expect them.
            longest: most bytes of the prompt.
            tools: functions that may be called, as OpenAI's clients describe them.

        Raises:
            LongChatError: the template writes more.
            ChatTemplateError: it fails, or refuses the messages.
        """
        eos = f"<eos-{secrets.token_hex(16)}>"  # no message can contain it
        parts: list[str] = []
        length = 0
        try:
            for part in (self._with_tools if tools else self._template).generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token="",
                eos_token=eos,
                tools=[dict(tool) for tool in tools] or None,
            ):
                parts.append(part)
                length += len(part) - part.count(eos) * len(eos)
                if length > longest:
                    raise LongChatError(
                        f"messages: found more than {longest} bytes of prompt, expected at most as many"
                    )
        except ChatTemplateError:
            raise
        except Exception as error:  # whatever the code of a template raises
            raise ChatTemplateError(f"{self.name}: the template failed: {_line(error)}") from None
        documents = "".join(parts).split(eos)
        if len(documents) == 1:
            return documents[0]
        ids = [np.array([BOS_ID]), encode(documents[0], bos=False)]
        for document in documents[1:]:
            ids += [np.array([EOS_ID]), encode(document, bos=False)]
        return np.concatenate(ids)


def load_template(path: Path | None) -> ChatTemplate:
    """Return a template.

    Args:
        path: a file with it, or a folder with one of a checkpoint's files; None: the plain default.

    Raises:
        ChatTemplateError: there is none, or it is malformed.
        OSError: a file cannot be read.
    """
    if path is None:
        return ChatTemplate()
    if not path.is_dir():
        return _of_json(path) if path.suffix == ".json" else _of_file(path)
    found = find_template(path)
    if found is None:
        raise ChatTemplateError(
            f"{path}: found no template, expected {TEMPLATE_FILE}, or {TOKENIZER_FILE} with chat_template"
        )
    return found


def find_template(folder: Path) -> ChatTemplate | None:
    """Return the template of a checkpoint or bundle; None: it has none.

    Raises:
        ChatTemplateError: it is malformed.
    """
    if (folder / TEMPLATE_FILE).is_file():
        return _of_file(folder / TEMPLATE_FILE)
    path = folder / TOKENIZER_FILE
    if path.is_file() and "chat_template" in read_json(path, ChatTemplateError, "settings of a tokenizer"):
        return _of_json(path)
    return None


def _of_file(path: Path) -> ChatTemplate:
    try:
        return ChatTemplate(read_text(path, JSON_BYTES), str(path))
    except UnicodeDecodeError:
        raise ChatTemplateError(f"{path}: found bytes that are no UTF-8, expected a template") from None
    except ChatTemplateError:
        raise
    except ValueError as error:
        raise ChatTemplateError(f"{path}: {error}") from None


def _of_json(path: Path) -> ChatTemplate:
    """Return the template in the settings of a tokenizer: text, or a list of ``default`` and perhaps ``tool_use``."""
    settings = read_json(path, ChatTemplateError, "settings of a tokenizer")
    found = settings.get("chat_template") if isinstance(settings, dict) else None
    with_tools = None
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found, with_tools = named.get("default"), named.get("tool_use")
    if not isinstance(found, str):
        raise ChatTemplateError(f"{path}: found no chat_template, expected text, or a list with one named default")
    if not (with_tools is None or isinstance(with_tools, str)):
        raise ChatTemplateError(f"{path}: found {shown(with_tools)} as the chat_template tool_use, expected text")
    return ChatTemplate(found, str(path), with_tools)


def _refuse(message: object) -> None:
    raise ChatTemplateError(_shortened(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON, as the filter that templates of Hugging Face expect: its options, in its order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _line(error: Exception) -> str:
    return _shortened(error) or type(error).__name__


def _shortened(message: object) -> str:
    return " ".join(str(message).split())[:200]
