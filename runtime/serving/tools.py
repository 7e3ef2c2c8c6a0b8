"""Decides which functions a chat has to call, and makes the form of such a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastblt.models.shown import shown
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.tool_calls import call_grammar
from fastblt.runtime.serving.api_error import ApiError, wrong
from fastblt.runtime.serving.chat_requests import ChatRequest, ChosenTool, FunctionFields

#: Arguments of a function that has none.
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def functions_to_call(body: ChatRequest) -> list[FunctionFields]:
    """Return the functions of which the message has to call one; none: the message is text.

    Raises:
        ApiError: two functions have one name, the choice is left to the model or names no function, or the message has
            to have another form as well.
    """
    functions = [tool.function for tool in body.tools or ()]
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise wrong("tools", f"tools[{index}].function.name: found {name!r} twice, expected each name once")
    choice = body.tool_choice
    if choice == "none" or not (functions or choice not in (None, "auto")):
        return []
    if not functions:
        found = choice if isinstance(choice, str) else "a function"
        raise wrong("tool_choice", f"tool_choice: found {found} without tools, expected tools to choose from")
    if choice is None or choice == "auto":
        raise _undecided(choice)
    if isinstance(choice, ChosenTool):
        if choice.function.name not in names:
            raise wrong(
                "tool_choice",
                f"tool_choice.function.name: found {choice.function.name!r}, expected a name among {shown(names)}",
            )
        functions = [functions[names.index(choice.function.name)]]
    _check_alone(body)
    return functions


def form_of(functions: Sequence[FunctionFields]) -> str:
    """Return the grammar of a call of one of the functions, compiled.

    Raises:
        ApiError: the parameters of a function cannot be enforced, or are too large.
    """
    schemas = [(function.name, function.parameters or _NO_ARGUMENTS) for function in functions]
    try:
        return call_grammar(schemas)
    except GrammarError as error:
        raise wrong("tools", f"tools: parameters of {error}") from None


def _undecided(choice: str | None) -> ApiError:
    found = "tools without it" if choice is None else repr(choice)
    return wrong(
        "tool_choice",
        f"tool_choice: found {found}, expected 'required', a function, or 'none': "
        "the server does not leave it to the model whether to call",
        "unsupported_value",
    )


def _check_alone(body: ChatRequest) -> None:
    """Raise an error where the message has to have another form than that of a call."""
    for name, found in {**body.form, "stop": body.stop}.items():
        if found not in (None, []):
            raise wrong(name, f"{name}: found it with a function that has to be called, expected one of them")
