"""``/v1/chat/completions``: writes the next message of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastblt.models.tokens import utf8
from fastblt.runtime.generation import Prompt
from fastblt.runtime.serving.answers import Writer, merged_pieces
from fastblt.runtime.serving.api_error import wrong
from fastblt.runtime.serving.chat_requests import ChatRequest
from fastblt.runtime.serving.chat_template import ChatTemplate, ChatTemplateError, LongChatError
from fastblt.runtime.serving.pieces import ByteLogprob, Piece, in_base64


def prompt_of(body: ChatRequest, template: ChatTemplate, longest: int) -> Prompt:
    """Return the prompt that the messages of a chat make.

    Args:
        body: the request.
        template: of the model.
        longest: most bytes that the model has room for.

    Raises:
        ApiError: the template refuses the messages, or they are too long or no UTF-8.
    """
    try:
        tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
        prompt = template.render([message.plain() for message in body.messages], longest, tools)
        return utf8(prompt, "messages") if isinstance(prompt, str) else prompt
    except LongChatError as error:
        raise wrong("messages", str(error), "context_length_exceeded") from None
    except ChatTemplateError as error:
        raise wrong("messages", str(error), "invalid_messages") from None
    except ValueError as error:
        raise wrong("messages", str(error)) from None


def new_bytes_of(body: ChatRequest) -> int | None:
    """Return the most new bytes, under either of its names.

    Raises:
        ApiError: both names are used, with different values.
    """
    found = {each for each in (body.max_tokens, body.max_completion_tokens) if each is not None}
    if len(found) > 1:
        raise wrong(
            "max_completion_tokens", "max_completion_tokens: found another value for max_tokens, expected one of them"
        )
    return found.pop() if found else None


class ChatWriter(Writer):
    """Writes messages."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first_choice(self, index: int, echo: Piece | None) -> dict[str, Any] | None:
        """Return who speaks."""
        return self.delta(index, {"role": "assistant", "content": ""}, [], None)

    def part_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a piece of the message."""
        delta = {"content": piece.text, **self.bytes_of(piece)}
        return {**self.delta(index, delta, piece.logprobs, None), **self.extras(piece)}

    def last_choice(self, index: int, rest: str, finish: str) -> dict[str, Any]:
        """Return why the message ended."""
        return self.delta(index, {"content": rest} if rest else {}, [], finish)

    def whole_choice(self, index: int, pieces: Sequence[Piece], rest: str, finish: str) -> dict[str, Any]:
        """Return a whole message."""
        piece = merged_pieces(pieces)
        message = {"role": "assistant", "content": piece.text + rest, "refusal": None, **self.bytes_of(piece)}
        return self.whole_message(index, message, piece, finish)

    def whole_message(self, index: int, message: dict[str, Any], piece: Piece, finish: str) -> dict[str, Any]:
        """Return a choice with a whole message, and what is known of its bytes."""
        with_logprobs = bool(getattr(self.body, "logprobs", None))
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(piece.logprobs) if with_logprobs else None,
            "finish_reason": finish,
            **self.extras(piece),
        }

    def bytes_of(self, piece: Piece) -> dict[str, str]:
        """Return the exact bytes, where they are wanted."""
        return {"bytes": in_base64(piece.data)} if self.body.return_bytes else {}

    @staticmethod
    def delta(index: int, delta: dict[str, Any], logprobs: Sequence[ByteLogprob], finish: str | None) -> dict[str, Any]:
        """Return a choice with a piece of a message."""
        found = _logprobs(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": found, "finish_reason": finish}


def _logprobs(found: Sequence[ByteLogprob]) -> dict[str, Any]:
    content = [
        {"token": each.token, "logprob": each.logprob, "bytes": [each.byte], "top_logprobs": []} for each in found
    ]
    return {"content": content, "refusal": None}
