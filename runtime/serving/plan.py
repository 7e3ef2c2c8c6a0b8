"""Turns the fields of a request into texts to generate, or into an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastblt.models.limits import SEED
from fastblt.models.tokens import decode
from fastblt.runtime.generation import Prompt
from fastblt.runtime.methods import parse_method
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.serving.api_error import ApiError, wrong
from fastblt.runtime.serving.chat_requests import FunctionFields
from fastblt.runtime.serving.deadline import Deadline
from fastblt.runtime.serving.model_host import ModelHost
from fastblt.runtime.serving.requests import TextFields
from fastblt.runtime.serving.settings import DEFAULT_NEW_BYTES
from fastblt.runtime.serving.tools import form_of


async def plan_texts(
    host: ModelHost,
    body: TextFields,
    prompts: Sequence[Prompt],
    deadline: Deadline,
    *,
    new_bytes: int | None,
    logprobs: bool,
    functions: Sequence[FunctionFields] = (),
) -> list[tuple[Prompt, GenerationRequest]]:
    """Return prompt and request of every text: all choices of the first prompt, then those of the second.

    A form is compiled in another thread, while the event loop answers others.

    Args:
        host: of the model.
        body: what is asked for.
        prompts: bytes, or token ids.
        deadline: of the request.
        new_bytes: most of each text; None: the default.
        logprobs: whether log-probabilities are wanted.
        functions: the text is a call of one of these; none: the request says which form it has.

    Raises:
        ApiError: a value cannot be used, a text would be too long, too many forms wait to be compiled, or this one is
            not compiled in time.
    """
    plan = partial(_plan, host, body, prompts, new_bytes, logprobs, functions)
    return await host.compile(plan, deadline) if body.form or functions else plan()


def _plan(
    host: ModelHost,
    body: TextFields,
    prompts: Sequence[Prompt],
    new_bytes: int | None,
    logprobs: bool,
    functions: Sequence[FunctionFields],
) -> list[tuple[Prompt, GenerationRequest]]:
    check_model(host, body)
    choices = body.n or 1
    most = host.settings.choices
    if len(prompts) * choices > most:
        raise wrong("n", f"n: found {len(prompts)} prompts with {choices} choices each, expected at most {most} texts")
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", "stream_options: found them without stream, expected stream to be true")
    common = _common(host, body, logprobs, {"grammar": form_of(functions)} if functions else body.form)
    wanted = []
    for prompt in prompts:
        length = prompt_length(prompt)
        room = _new_bytes(host, length, new_bytes)
        for choice in range(choices):
            seed = None if body.seed is None else (body.seed + choice) % (SEED + 1)
            wanted.append((prompt, replace(common, max_new_bytes=room, seed=seed)))
    return wanted


def check_model(host: ModelHost, body: TextFields) -> None:
    """Check the name of the model.

    Raises:
        ApiError: 404, it is another one.
    """
    served = host.model_name
    if body.model is not None and body.model != served:
        raise unknown_model(body.model, served)


def unknown_model(found: str, served: str) -> ApiError:
    """Return the error about a model that is not served."""
    return ApiError(404, f"model: found {found!r}, expected {served!r}", code="model_not_found", param="model")


def prompt_length(prompt: Prompt) -> int:
    """Return the bytes of a prompt; special tokens count as one each."""
    return len(prompt) if isinstance(prompt, bytes | str) else len(prompt) - 1


def prompt_bytes(prompt: Prompt) -> bytes:
    """Return the bytes of a prompt, without special tokens."""
    if isinstance(prompt, str):
        return prompt.encode()
    return prompt if isinstance(prompt, bytes) else decode(prompt)


def _new_bytes(host: ModelHost, length: int, asked: int | None) -> int:
    most = host.runtime.backend.max_bytes
    if length + (1 if asked is None else asked) > most:
        limit = "" if asked is None else f" and {asked} new ones"
        raise ApiError(
            400,
            f"found {length} bytes of prompt{limit}, expected at most {most} bytes in all",
            code="context_length_exceeded",
            param="prompt" if asked is None or length >= most else "max_tokens",
        )
    return min(DEFAULT_NEW_BYTES, most - length) if asked is None else asked


def _common(host: ModelHost, body: TextFields, logprobs: bool, form: Mapping[str, Any]) -> GenerationRequest:
    """Return what all texts of a request share."""
    method = body.method or host.default_method(body.seed)
    try:
        request = GenerationRequest(
            method=method,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            min_p=body.min_p or 0.0,
            logit_bias={int(byte): value for byte, value in (body.logit_bias or {}).items()},
            stop=body.stop or (),
            logprobs=logprobs,
            **form,
        )
        parse_method(method).check(host.runtime.config)
    except ValueError as error:
        name = str(error).partition(":")[0].partition(" ")[0].partition(".")[0]
        name = "response_format" if name == "json_schema" else name
        raise wrong(name if name in TextFields.model_fields else None, str(error)) from None
    return request
