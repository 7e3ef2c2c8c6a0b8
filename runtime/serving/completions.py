"""``/v1/completions``: continues prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastblt.models.tokens import utf8
from fastblt.runtime.serving.answers import Writer, merged_pieces
from fastblt.runtime.serving.api_error import wrong
from fastblt.runtime.serving.pieces import ByteLogprob, Piece, in_base64
from fastblt.runtime.serving.requests import CompletionRequest


def prompts_of(body: CompletionRequest) -> list[bytes]:
    """Return the prompts of a request.

    Raises:
        ApiError: one of them is no UTF-8, or log-probabilities of prompts are asked for.
    """
    if body.echo and body.logprobs is not None:
        raise wrong("echo", "echo: found it with logprobs, expected one of them: prompts have no log-probabilities")
    found: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if found and isinstance(found[0], int):
        found = [found]
    try:
        return [utf8(each, "prompt") if isinstance(each, str) else bytes(each) for each in found]
    except ValueError as error:
        raise wrong("prompt", str(error)) from None


class CompletionWriter(Writer):
    """Writes texts."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def first_choice(self, index: int, echo: Piece | None) -> dict[str, Any] | None:
        """Return the prompt, where it is to be repeated."""
        return None if echo is None else self._choice(index, echo.text, echo, None)

    def part_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a piece of the text."""
        return {**self._choice(index, piece.text, piece, None), **self.extras(piece)}

    def last_choice(self, index: int, rest: str, finish: str) -> dict[str, Any]:
        """Return why the text ended."""
        return self._choice(index, rest, None, finish)

    def whole_choice(self, index: int, pieces: Sequence[Piece], rest: str, finish: str) -> dict[str, Any]:
        """Return a whole text."""
        piece = merged_pieces(pieces)
        return {**self._choice(index, piece.text + rest, piece, finish, whole=True), **self.extras(piece)}

    def _choice(
        self, index: int, text: str, piece: Piece | None, finish: str | None, *, whole: bool = False
    ) -> dict[str, Any]:
        logprobs = [] if piece is None else piece.logprobs
        with_logprobs = bool(logprobs) or (whole and getattr(self.body, "logprobs", None) is not None)
        choice = {
            "index": index,
            "text": text,
            "logprobs": _logprobs(logprobs) if with_logprobs else None,
            "finish_reason": finish,
        }
        if self.body.return_bytes and piece is not None:
            choice["bytes"] = in_base64(piece.data)
        return choice


def _logprobs(found: Sequence[ByteLogprob]) -> dict[str, Any]:
    return {
        "tokens": [each.token for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": None,
        "text_offset": [each.offset for each in found],
    }
