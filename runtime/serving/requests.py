"""Defines what clients may ask for: every field of a request, with its bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fastblt.models import limits
from fastblt.models.shown import shown
from fastblt.models.tokens import VOCAB_SIZE

#: A byte value as a key of a JSON object.
ByteKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])$", max_length=3)]
ByteValue = Annotated[int, Field(ge=0, le=255)]
ByteValues = Annotated[list[ByteValue], Field(min_length=1, max_length=limits.TEXT_BYTES, fail_fast=True)]
Bias = Annotated[float, Field(ge=-limits.LOGIT_BIAS, le=limits.LOGIT_BIAS)]
NewBytes = Annotated[int, Field(ge=0, le=limits.TEXT_BYTES)]
Text = Annotated[str, Field(max_length=limits.TEXT_BYTES)]
Label = Annotated[str, Field(max_length=limits.LABEL_CHARACTERS)]
StopString = Annotated[str, Field(min_length=1, max_length=limits.STOP_BYTES)]
StopStrings = Annotated[list[StopString], Field(max_length=limits.CLIENT_STOP_STRINGS, fail_fast=True)]
#: Most entries of an object. Of larger ones none is looked at: each could be an error of its own.
MOST_ENTRIES = 256


def _few(value: object) -> object:
    """Return a value that is no object with more entries than any valid one has."""
    if isinstance(value, dict) and len(value) > MOST_ENTRIES:
        counts = {"found": len(value), "most": MOST_ENTRIES}
        raise PydanticCustomError("too_many", "found {found} entries, expected at most {most}", counts)
    return value


Few = BeforeValidator(_few)


class Only:
    """Marks a field of OpenAI's that this server does not have: a value that asks for nothing is accepted."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema that checks a value."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the schema that clients see."""
        return {"enum": [None, *self.values]}

    def _check(self, value: object) -> object:
        if value is None or any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.values
        ):
            return value
        expected = " or ".join(shown(each) for each in self.values) or "null"
        raise PydanticCustomError(
            "unsupported_value",
            "found {found}, expected {expected}: this server supports no other value",
            {"found": shown(value), "expected": expected},
        )


class Strict(BaseModel):
    """Refuses fields that it does not know, and values of another type than declared."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        return _few(value)


class StreamOptions(Strict):
    """Specifies what a stream has besides its text."""

    include_usage: bool = False
    """Whether the last chunk before ``[DONE]`` has the counts of the whole request."""
    include_obfuscation: Annotated[Any, Only(False)] = None


class Extension(Strict):
    """Asks for what OpenAI's interface has no place for."""

    details: bool = False
    """Whether every piece has its bytes, how each of them came about, and where patches end."""


class TextFields(Strict):
    """Holds what requests of texts and of chats have in common."""

    model: Annotated[str, Field(max_length=limits.NAME_CHARACTERS)] | None = None
    """Name of the served model, see ``/v1/models``; null: that one."""
    max_tokens: NewBytes | None = None
    """Most new bytes; null: 256, or what there is room for."""
    temperature: Annotated[float, Field(ge=0, le=limits.TEMPERATURE)] | None = None
    """0 is greedy; null: 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=VOCAB_SIZE)] | None = None
    """Extension: sample from this many most likely bytes; 0: from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Extension: sample from bytes at least this many times as likely as the most likely one."""
    seed: Annotated[int, Field(ge=0, le=limits.SEED)] | None = None
    """The second choice has the next seed, and so on."""
    stop: StopString | StopStrings | None = None
    """The text ends before the first of these."""
    logit_bias: Annotated[dict[ByteKey, Bias], Field(max_length=256), Few] | None = None
    """What to add to the logits of bytes, by byte value."""
    response_format: Annotated[dict[str, Any], Field(max_length=8), Few] | None = None
    """The form of the text: ``text``, ``json_object``, or ``json_schema`` (docs/structured-output.md)."""
    regex: Annotated[str, Field(max_length=limits.GRAMMAR_BYTES)] | None = None
    """Extension: a regular expression that the whole text matches."""
    grammar: Annotated[str, Field(max_length=limits.GRAMMAR_BYTES)] | None = None
    """Extension: a grammar in Lark's syntax."""
    choice: Annotated[list[Text], Field(min_length=1, max_length=limits.GRAMMAR_CHOICES, fail_fast=True)] | None = None
    """Extension: texts, one of which is written."""
    n: Annotated[int, Field(ge=1, le=limits.CHOICES)] | None = None
    """Texts after each prompt."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    method: Annotated[str, Field(max_length=limits.NAME_CHARACTERS)] | None = None
    """Extension: decoding method, such as ``ar`` or ``s:8``; null: the server's."""
    return_bytes: bool | None = None
    """Extension: whether the exact bytes come beside the text, in base64."""
    fastblt: Extension | None = None
    """Extension: what else is reported."""

    presence_penalty: Annotated[Any, Only(0)] = None
    frequency_penalty: Annotated[Any, Only(0)] = None
    user: Label | None = None
    """Ignored."""
    safety_identifier: Label | None = None
    """Ignored."""
    prompt_cache_key: Label | None = None
    """Ignored: the longest prompt in common is found without it."""
    service_tier: Literal["auto", "default"] | None = None
    """Ignored."""

    @property
    def details(self) -> bool:
        """Return whether details are asked for."""
        return self.fastblt is not None and self.fastblt.details

    @property
    def form(self) -> dict[str, Any]:
        """Return the fields that say which form the text has; none, as with ``{"type": "text"}``: any."""
        fields = {name: getattr(self, name) for name in ("response_format", "regex", "grammar", "choice")}
        return {name: value for name, value in fields.items() if value not in (None, {"type": "text"})}

    @property
    def with_usage(self) -> bool:
        """Return whether the stream ends with counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(TextFields):
    """Asks for the continuation of one or more prompts."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=limits.CHOICES, fail_fast=True)]
        | ByteValues
        | Annotated[list[ByteValues], Field(min_length=1, max_length=limits.CHOICES, fail_fast=True)]
    )
    """Text, byte values, or a list of either."""
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    """0 or 1: report the log-probability of each new byte; alternatives to it are not reported."""
    echo: bool | None = None
    """Whether the text begins with the prompt."""
    best_of: Annotated[Any, Only(1)] = None
    suffix: Annotated[Any, Only("")] = None
