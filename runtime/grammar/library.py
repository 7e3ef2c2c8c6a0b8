"""Compiles grammars by llguidance, with bounds on what one of them may cost; the library is the extra ``grammar``."""

from __future__ import annotations

import re
from concurrent.futures import Future
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Literal, NamedTuple

from fastblt.models import limits
from fastblt.models.shown import shown
from fastblt.runtime.grammar.error import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

#: What the source of a grammar is written in.
Kind = Literal["json_schema", "regex", "grammar"]
#: JSON without white space between its parts: nothing to decide, and nothing that a model could repeat without end.
JSON_OPTIONS: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
#: Compiled grammars that are kept.
_KEPT = 64
#: How llguidance's errors begin, and what is said in their place. Names of the grammar may be quoted behind that.
_PROBLEMS = {
    r"NoExtension": "found a grammar that no text fits, expected one that a text can fit",
    r"parser error: Too many items \(limit \d+; ff_tokens\)": "found bytes that must follow without end or beyond "
    "llguidance's bounds, expected a text that can end",
    r"oneOf constraints are not supported": "found oneOf with alternatives that may fit together, expected anyOf, or "
    "alternatives that differ in type, in the text of const or enum, or in a required property that does",
}


#: What the library says about a regular expression: that it is invalid, and the reason some lines below.
_REGEX_REASON = re.compile(r"(?:invalid regex .*?|\A)regex parse error:.*?\nerror: ([^\n]*)", re.DOTALL)
#: What it says about keywords of a schema that it does not enforce.
_KEYWORDS = re.compile(r"Unimplemented keys: \[(.*)\]")


class _Library(NamedTuple):
    """Holds what is made once a process."""

    matcher: type[LLMatcher]
    tokenizer: LLTokenizer
    """One token for each byte."""
    limits: LLParserLimits


class _Kept:
    """Keeps matchers in their first state, those of the grammars that were asked for last.

    The lock is held to look, never to compile: a thread waits for the grammar it wants, not for those of others.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Kind, str], Future[LLMatcher]] = {}
        self._lock = Lock()

    def copy(self, kind: Kind, source: str) -> LLMatcher:
        """Return a matcher of its own; compile the grammar if it is not kept, and no other thread is about to."""
        key = kind, source
        with self._lock:
            known = self._found.pop(key, None)
            found: Future[LLMatcher] = Future() if known is None else known
            self._found[key] = found
            if len(self._found) > _KEPT:
                del self._found[next(iter(self._found))]
        if known is None:
            self._fill(key, found)
        return found.result().deep_copy()

    def _fill(self, key: tuple[Kind, str], found: Future[LLMatcher]) -> None:
        try:
            found.set_result(_compile(*key))
        except BaseException as error:
            with self._lock:
                if self._found.get(key) is found:
                    del self._found[key]
            found.set_exception(error)


_kept = _Kept()


def new_matcher(kind: Kind, source: str) -> LLMatcher:
    """Return a matcher that nothing has been read by.

    Args:
        kind: what the source is written in.
        source: at most `limits.GRAMMAR_BYTES` bytes of UTF-8.

    Raises:
        GrammarError: llguidance is missing, or the grammar is malformed, too large, or has no text at all.
    """
    return _kept.copy(kind, source)


def _compile(kind: Kind, source: str) -> LLMatcher:
    if (size := len(source.encode("utf-8", errors="replace"))) > limits.GRAMMAR_BYTES:
        raise GrammarError(f"{kind}: found {size} bytes, expected at most {limits.GRAMMAR_BYTES}")
    library = _library(kind)
    made = library.matcher
    try:
        if kind == "json_schema":
            compiled = made.grammar_from_json_schema(source, overrides=JSON_OPTIONS)
        elif kind == "regex":
            compiled = made.grammar_from_regex(source)
        else:
            compiled = made.grammar_from_lark(source)
        matcher = made(library.tokenizer, compiled, log_level=0, limits=library.limits)
    except ValueError as error:
        raise GrammarError(f"{kind}: {_problem(str(error))}") from None
    check(matcher, kind)
    # What the first steps cost belongs to compiling; they show what has no text at all, too.
    trial = matcher.deep_copy()
    trial.compute_bitmask()
    check(trial, kind)
    trial.try_consume_tokens(list(trial.compute_ff_bytes()))
    check(trial, kind)
    trial.compute_bitmask()
    check(trial, kind)
    return matcher


def check(matcher: LLMatcher, kind: Kind) -> None:
    """Raise `GrammarError` where a matcher has met an error, a bound included."""
    if matcher.is_error():
        raise GrammarError(f"{kind}: {_problem(matcher.get_error())}")


@cache
def _library(kind: Kind) -> _Library:
    try:
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    except ImportError:
        raise GrammarError(
            f"{kind}: llguidance is not installed, expected the extra: pip install 'fastblt[grammar]'"
        ) from None
    bounds = LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=2_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
    return _Library(LLMatcher, LLTokenizer("byte"), bounds)


def _problem(message: str) -> str:
    """Return what is wrong in one line; the library quotes the grammar and its own state behind that."""
    if found := _REGEX_REASON.search(message):
        return f"found an invalid expression ({found[1]}), expected a regular one"
    line = message.split("\n", maxsplit=1)[0].removesuffix("<non-verbose/>").strip()
    if found := _KEYWORDS.fullmatch(line):
        return f"found {found[1]}, expected a schema without keywords that cannot be enforced"
    for beginning, problem in _PROBLEMS.items():
        if re.match(beginning, line):
            return problem
    if line.startswith("panic:"):
        line = "found a grammar that llguidance cannot compile, expected a smaller one"
    return line if len(line) <= 300 else shown(line)
