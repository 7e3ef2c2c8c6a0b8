"""Decoding methods by name: ``ar``, ``s:K``."""

from __future__ import annotations

from collections.abc import Callable

from fastblt.runtime.backend import DRAFT_SLACK
from fastblt.runtime.methods.ar import Autoregressive
from fastblt.runtime.methods.method import Choose, Method, Origin, Round
from fastblt.runtime.methods.self_speculation import SelfSpeculation

__all__ = ["Choose", "Method", "MethodError", "Origin", "Round", "parse_method"]


class MethodError(ValueError):
    """A method that does not exist or cannot do what is asked."""


def _autoregressive(argument: str) -> Method:
    if argument:
        raise MethodError(f"method 'ar:{argument}': found an argument, expected plain 'ar'")
    return Autoregressive()


def _self_speculation(argument: str) -> Method:
    if not argument.isascii() or not argument.isdigit() or not 1 <= int(argument) < DRAFT_SLACK:
        raise MethodError(f"method 's:{argument}': found draft length {argument!r}, expected 1..{DRAFT_SLACK - 1}")
    return SelfSpeculation(int(argument))


_METHODS: dict[str, Callable[[str], Method]] = {"ar": _autoregressive, "s": _self_speculation}


def parse_method(text: str) -> Method:
    """The method that a name such as ``ar`` or ``s:8`` means.

    Raises:
        MethodError: unknown name or bad argument; the message lists what exists.
    """
    name, _, argument = text.partition(":")
    if name not in _METHODS:
        raise MethodError(f"method {text!r}: unknown, expected ar or s:K (for example s:8)")
    return _METHODS[name](argument)
