"""Defines what clients may ask for in a chat: messages, functions to call, and every other field, with its bounds."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fastblt.models import limits
from fastblt.runtime.serving.requests import Few, Label, NewBytes, Only, Strict, Text, TextFields

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _number(text: str) -> float:
    found = float(text)
    if math.isinf(found):
        raise ValueError(text)  # JSON again, it would be no number
    return found


def _arguments(text: str) -> str:
    """Check the arguments of a call that was made: the JSON of an object, its numbers finite."""
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_number)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PydanticCustomError("no_object", "expected the JSON of an object with finite numbers")
    return text


class ContentPart(Strict):
    """Holds a part of a message; text is the only kind."""

    type: Literal["text"]
    text: Text


class CalledFunction(Strict):
    """Names a function that was called, and the arguments."""

    name: FunctionName
    arguments: Annotated[Text, AfterValidator(_arguments)]
    """JSON of an object."""


class MadeCall(Strict):
    """Holds a call that an earlier message of the assistant has made."""

    id: Label
    type: Literal["function"]
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """Return what a template sees: the arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


class ChatMessage(Strict):
    """Holds a message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[MadeCall], Field(max_length=limits.TOOLS, fail_fast=True)] | None = None
    """Calls that a message of the assistant has made."""
    tool_call_id: Annotated[Label | None, Field(validate_default=True)] = None
    """Of a message of a tool: the call that it answers."""
    content: Annotated[
        Text
        | Annotated[list[ContentPart], Field(min_length=1, max_length=limits.CONTENT_PARTS, fail_fast=True)]
        | None,
        Field(validate_default=True),
    ] = None
    """Text; parts are joined. Only a message with calls may have none."""
    name: Label | None = None
    refusal: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None

    @field_validator("tool_calls")
    @classmethod
    def _of_the_assistant(cls, calls: list[MadeCall] | None, info: ValidationInfo) -> list[MadeCall] | None:
        if calls and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("unexpected", "expected none: only the assistant calls")
        return calls

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, found: str | None, info: ValidationInfo) -> str | None:
        role = info.data.get("role")
        if role == "tool" and found is None:
            raise PydanticCustomError("missing", "expected the id of the call")
        if role not in ("tool", None) and found is not None:
            raise PydanticCustomError("unexpected", "expected none: only messages of tools answer a call")
        return found

    @field_validator("content")
    @classmethod
    def _there(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "expected a value")
        return content

    def plain(self) -> dict[str, Any]:
        """Return what a template sees."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        found = {"role": self.role, "content": content, "name": self.name, "tool_call_id": self.tool_call_id}
        calls = {"tool_calls": [call.plain() for call in self.tool_calls]} if self.tool_calls else {}
        return {name: value for name, value in found.items() if value is not None} | calls


class FunctionFields(Strict):
    """Describes a function that may be called."""

    name: FunctionName
    description: Text | None = None
    parameters: Annotated[dict[str, Any], Few] | None = None
    """JSON schema of the arguments, an object; null or empty: the function has none."""
    strict: bool | None = None
    """Ignored: arguments always fit the schema."""

    @field_validator("parameters")
    @classmethod
    def _an_object(cls, found: dict[str, Any] | None) -> dict[str, Any] | None:
        if found and found.get("type") != "object":
            raise PydanticCustomError("no_object", 'expected a JSON schema with "type": "object"')
        return found


class Tool(Strict):
    """Holds a tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionFields


class ChosenFunction(Strict):
    """Names the function to call."""

    name: FunctionName


class ChosenTool(Strict):
    """Chooses the function to call."""

    type: Literal["function"]
    function: ChosenFunction


#: The tags are kinds that `fastblt.runtime.serving.validation` leaves out of the names of fields.
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")] | Annotated[ChosenTool, Tag("dict")],
    Discriminator(lambda value: "str" if isinstance(value, str) else "dict"),
]


class ChatRequest(TextFields):
    """Asks for the next message of a chat."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=limits.MESSAGES, fail_fast=True)]
    max_completion_tokens: NewBytes | None = None
    """The later name of ``max_tokens``."""
    logprobs: bool | None = None
    """Whether to report the log-probability of each new byte."""
    top_logprobs: Annotated[Any, Only(0)] = None
    tools: Annotated[list[Tool], Field(max_length=limits.TOOLS, fail_fast=True)] | None = None
    """Functions that the template describes to the model (docs/structured-output.md)."""
    tool_choice: ToolChoice | None = None
    """``required`` or a function: the message is a call; ``none``: it is text. Needed where there are tools."""
    parallel_tool_calls: bool | None = None
    """Ignored: a message has one call."""
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    verbosity: Annotated[Any, Only("medium")] = None
    web_search_options: Annotated[Any, Only()] = None
    store: Annotated[Any, Only(False)] = None
    metadata: Annotated[dict[Label, Label], Field(max_length=16), Few] | None = None
    """Ignored."""
