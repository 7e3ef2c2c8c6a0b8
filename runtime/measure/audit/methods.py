"""Chooses the methods to audit."""

from __future__ import annotations

from collections.abc import Sequence

from fastblt.models.config import BltConfig
from fastblt.runtime.methods import MethodError, parse_method
from fastblt.runtime.methods.registry import Selection, audit_methods


def choose_methods(given: Sequence[str] | None, config: BltConfig) -> Selection:
    """Return the methods that a user asked for; None: the default ones of every method that the model can run.

    Raises:
        MethodError: a method that was given does not exist, the model cannot run it, or the list is empty.
    """
    if given is None:
        return audit_methods(config)
    if not given:
        raise MethodError("methods: found none, expected at least one")
    for name in given:
        parse_method(name).check(config)
    return Selection(tuple(given), ())
