"""Defines what the server answers, for the schema that clients read; tests compare every answer with it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fastblt.runtime.methods import Origin

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    """Has no fields but those that are declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(Answer):
    """Reports what is wrong with a request, or with the server."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answer):
    """Is the body of every answer that is an error."""

    error: ErrorDetail


class PromptDetails(Answer):
    """Counts the bytes of prompts that did not have to be read again."""

    cached_tokens: int


class NewDetails(Answer):
    """Counts drafted bytes, by whether verification kept them."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Answer):
    """Counts the bytes of a request; a token is a byte."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: NewDetails


class Details(Answer):
    """Holds what is known of new bytes; extension."""

    bytes: str
    """The bytes, in base64."""
    origins: list[Origin]
    """How each of them came about."""
    boundaries: list[int]
    """Offsets into the new text of bytes that end a patch; negative ones are in the prompt."""
    rejected: str
    """Drafted bytes that were replaced by what is here, in base64."""
    calls: dict[str, int] | None = None
    """Calls of each part of the model so far, for this text; in a stream only."""


class Costs(Answer):
    """Holds what a request cost; extension."""

    method: str
    rounds: int
    drafted: int
    accepted: int
    calls: dict[str, int]
    """Calls of each part of the model."""
    first_byte_seconds: float
    total_seconds: float
    reused_bytes: int


class CompletionLogprobs(Answer):
    """Holds the log-probability of each byte."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]
    """Offset, in characters, of the character that the byte belongs to."""


class CompletionChoice(Answer):
    """Holds a text, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    bytes: str | None = None
    fastblt: Details | None = None


class Completion(Answer):
    """Holds the texts of a request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    fastblt: Costs | None = None


class TokenLogprob(Answer):
    """Holds the log-probability of a byte."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[None]


class ChatLogprobs(Answer):
    """Holds the log-probability of each byte."""

    content: list[TokenLogprob]
    refusal: None


class FunctionCall(Answer):
    """Holds the call of a function."""

    name: str
    arguments: str
    """JSON; where the text was cut, its beginning."""


class ToolCall(Answer):
    """Holds a call, and the id that its result is to name."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Answer):
    """Holds the message of the model."""

    role: Literal["assistant"]
    content: str | None
    """Text; null: the message is a call."""
    refusal: None
    tool_calls: list[ToolCall] | None = None
    bytes: str | None = None


class ChatChoice(Answer):
    """Holds a message."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    fastblt: Details | None = None


class ChatCompletion(Answer):
    """Holds the messages of a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    fastblt: Costs | None = None


class FunctionDelta(Answer):
    """Holds a piece of the call of a function."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Answer):
    """Holds a piece of a call; the first one has its id and the name of the function."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Answer):
    """Holds a piece of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    bytes: str | None = None


class ChatChunkChoice(Answer):
    """Holds a piece of a message, and what is known of it."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    fastblt: Details | None = None


class ChatChunk(Answer):
    """Is one event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    fastblt: Costs | None = None


class ModelFacts(Answer):
    """Holds what the model can do; extension."""

    methods: list[str]
    default_method: str
    max_bytes: int
    """Longest prompt plus new bytes."""
    sequences: int
    """Texts that grow at the same time."""


class Model(Answer):
    """Describes the served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    fastblt: ModelFacts


class ModelList(Answer):
    """Lists the served model."""

    object: Literal["list"]
    data: list[Model]


class Health(Answer):
    """Reports a state."""

    status: str
