"""Describes one generation: the request that the Python API, the command line and servers share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypedDict

import numpy as np

from fastblt.models import limits
from fastblt.models.shown import shown
from fastblt.models.tokens import BYTE_OFFSET, VOCAB_SIZE, utf8
from fastblt.runtime.grammar.constraint import Constraint, constraint_of
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.methods import Method, MethodError, parse_method
from fastblt.runtime.sequence.sampling import Distribution, Sampler, SamplingError, check_sampling, is_number

#: New bytes of a generation unless the request specifies otherwise.
DEFAULT_NEW_BYTES = 256


class GenerationOptions(TypedDict, total=False):
    """The fields of `GenerationRequest` as keyword arguments, apart from ``max_new_bytes``."""

    method: str | Method | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    logit_bias: Mapping[int, float]
    banned_bytes: bytes
    seed: int | None
    stop: bytes | str | Sequence[bytes | str]
    stop_at_eos: bool
    logprobs: bool
    response_format: Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    choice: Sequence[str] | None
    forced_bytes: bool


@dataclass(frozen=True)
class GenerationRequest:
    """Holds all that determines a generation, apart from the model and the prompt; checks itself.

    `fastblt.runtime.sequence.sampling` describes the order in which bias, temperature, top-k, top-p and min-p apply.

    At most one of ``response_format``, ``regex``, ``grammar`` and ``choice`` describes the form of the text
    (docs/structured-output.md). The whole text has this form if it ends by itself (``eos``); where ``max_new_bytes``
    cuts it, it is the beginning of one that has.

    Raises:
        GrammarError: the form is malformed, too large or impossible, needs the extra ``grammar``, or comes with what
            contradicts it: stop strings, or a text that goes on after EOS.
        MethodError: the method does not exist, is malformed, or does not verify the bytes of a text with a form.
        SamplingError: a parameter of sampling is out of range.
        ValueError: ``max_new_bytes`` is out of range, or a stop string is empty or neither bytes nor text, or there
            are too many or too long ones (`fastblt.models.limits`).
    """

    max_new_bytes: int = DEFAULT_NEW_BYTES
    """Most new bytes, >= 0; a token without a byte counts as one."""
    method: str | Method | None = None
    """A name (``ar``, ``s:K``, ``d:B@RULE``, ``dv:B@RULE``, ``auto``; docs/decoding.md) or a method. None: ``auto``,
    or ``s:8`` where a seed is given, since a seed does not fix what ``auto`` samples."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability; 1: from all."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0: from all."""
    min_p: float = 0.0
    """Sample from tokens at least this many times as likely as the most likely one; 0: from all."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """What to add to the logits of bytes, by byte value; -inf bans a byte. Applies to greedy decoding too. EOS and the
    other special tokens are not bytes and keep their logits, so a text can still end where bytes are banned."""
    banned_bytes: bytes = b""
    """Bytes that are never generated, as with a bias of -inf."""
    seed: int | None = None
    """Seed of sampling, >= 0; None: a random one."""
    stop: bytes | str | Sequence[bytes | str] = ()
    """The text ends before this string, or before the first of these; kept as a tuple of bytes."""
    stop_at_eos: bool = True
    """End at the end-of-document token; otherwise it is a token without a byte."""
    logprobs: bool = False
    """Report the log-probability of each new byte, see `Chunk.logprobs`."""
    response_format: Mapping[str, Any] | None = field(default=None, hash=False)
    """A JSON text, as OpenAI has it: ``{"type": "json_object"}``, or ``{"type": "json_schema", "json_schema":
    {"schema": {...}}}``."""
    regex: str | None = None
    """A regular expression that the whole text matches, in the syntax of Rust's ``regex``."""
    grammar: str | None = None
    """A grammar in the Lark syntax of llguidance; its rule ``start`` is the text."""
    choice: Sequence[str] | None = None
    """Texts, one of which is written; kept as a tuple."""
    forced_bytes: bool = True
    """Write bytes that the form leaves no choice about without asking the model; the text is the same either way."""

    def __post_init__(self) -> None:
        count = self.max_new_bytes
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or not 0 <= count <= limits.TEXT_BYTES:
            raise ValueError(
                f"max_new_bytes: found {shown(count)}, expected an integer >= 0, up to {limits.TEXT_BYTES}"
            )
        object.__setattr__(self, "max_new_bytes", int(count))
        object.__setattr__(self, "stop", stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias, self.banned_bytes))
        object.__setattr__(self, "banned_bytes", bytes(self.banned_bytes))
        if isinstance(self.choice, list):
            object.__setattr__(self, "choice", tuple(self.choice))
        self._check_form(self.decoding_method())
        check_sampling(self.temperature, self.top_p, self.top_k, self.min_p, self.seed)

    def decoding_method(self) -> Method:
        """Return the method to decode with; the default is chosen here."""
        if self.method is None:
            return parse_method("auto" if self.seed is None else "s:8")
        return parse_method(self.method)

    def constraint(self) -> Constraint | None:
        """Return the form of the text, compiled; None: any bytes."""
        return constraint_of(self.response_format, self.regex, self.grammar, self.choice, forces=self.forced_bytes)

    def _check_form(self, method: Method) -> None:
        """Raise an error where something contradicts the form of the text."""
        constraint = self.constraint()
        if constraint is None:
            return
        if not method.lossless:
            raise MethodError(
                f"method {method.name!r}: found it with a form of the text, expected a method that verifies its "
                "bytes: ar, s:K, lookup:K, dv:B@RULE or auto"
            )
        if self.stop:
            raise GrammarError(
                f"stop: found stop strings and a {constraint.kind}, expected one of them: a text that is stopped "
                "need not have the form"
            )
        if not self.stop_at_eos:
            raise GrammarError(
                f"stop_at_eos: found False and a {constraint.kind}, expected True: nothing may follow the text"
            )

    def sampler(self) -> Sampler:
        """Return a new sampler, in the state that the seed determines."""
        constraint = self.constraint()
        return Sampler(
            self.temperature,
            self.top_p,
            self.seed,
            top_k=self.top_k,
            min_p=self.min_p,
            bias=self._token_bias(),
            logprobs=self.logprobs,
            matcher=None if constraint is None else constraint.matcher(),
        )

    def stop_rules(self) -> StopRules:
        """Return when the generation ends."""
        return StopRules(self.max_new_bytes, stop_strings(self.stop), self.stop_at_eos)

    def _token_bias(self) -> Distribution | None:
        """Return the bias of every token, float64 [`VOCAB_SIZE`]; None where no byte has one."""
        if not self.logit_bias and not self.banned_bytes:
            return None
        bias = np.zeros(VOCAB_SIZE)
        for byte, value in self.logit_bias.items():
            bias[BYTE_OFFSET + byte] = value
        bias[BYTE_OFFSET + np.frombuffer(self.banned_bytes, dtype=np.uint8).astype(np.intp)] = -np.inf
        return bias


@dataclass(frozen=True)
class StopRules:
    """Specifies when a generation ends."""

    max_new_bytes: int
    strings: tuple[bytes, ...] = ()
    """The text ends before the first of these."""
    at_eos: bool = True
    """End at the end-of-document token; otherwise it is a token without a byte."""


def stop_strings(strings: bytes | str | Sequence[bytes | str]) -> tuple[bytes, ...]:
    """Return stop strings as bytes; a single one needs no list around it.

    Raises:
        ValueError: one of them is empty, or neither bytes nor text; or they are too many, or too long.
    """
    if isinstance(strings, str | bytes) or not isinstance(strings, Iterable):
        strings = [strings]
    found = tuple(_stop_string(string) for string in islice(strings, limits.STOP_STRINGS + 1))
    if len(found) > limits.STOP_STRINGS:
        raise ValueError(f"stop: found more than {limits.STOP_STRINGS} strings, expected at most so many")
    if (size := sum(map(len, found))) > limits.STOP_BYTES:
        raise ValueError(f"stop: found {size} bytes, expected at most {limits.STOP_BYTES} in all strings together")
    return found


def _stop_string(string: object) -> bytes:
    if not isinstance(string, str | bytes):
        raise ValueError(f"stop: found {shown(string)}, expected bytes, text, or a sequence of them")
    if not string:
        raise ValueError("stop: found an empty string, expected at least one byte")
    return utf8(string, "stop") if isinstance(string, str) else string


def _checked_bias(logit_bias: Mapping[int, float], banned: bytes) -> dict[int, float]:
    """Return a copy of a bias by byte value, each of which may have one."""
    if not isinstance(banned, bytes | bytearray):
        raise SamplingError(f"banned_bytes: found {shown(banned)}, expected bytes")
    if not isinstance(logit_bias, Mapping):
        raise SamplingError(f"logit_bias: found {shown(logit_bias)}, expected a mapping of byte values to numbers")
    for byte, value in logit_bias.items():
        if not isinstance(byte, int | np.integer) or not 0 <= byte <= 255:
            raise SamplingError(f"logit_bias: found {shown(byte)}, expected byte values in 0..255")
        if not (is_number(value) and value < math.inf):
            raise SamplingError(
                f"logit_bias: found {shown(value)} for byte {byte}, expected a finite number, or -inf to ban it"
            )
    if len({*banned, *(byte for byte, value in logit_bias.items() if value == -math.inf)}) == 256:
        raise SamplingError("logit_bias, banned_bytes: found every byte banned, expected at least one that is not")
    return {int(byte): float(value) for byte, value in logit_bias.items()}
