"""Decodes: each method turns a session into rounds of tokens; `registry` knows them by name."""

from __future__ import annotations

from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import Method, MethodError, Origin, Round, rounds_of, steps_of
from fastblt.runtime.methods.registry import parse_method, register_method

__all__ = [
    "Method",
    "MethodEntry",
    "MethodError",
    "Origin",
    "Round",
    "parse_method",
    "register_method",
    "rounds_of",
    "steps_of",
]
