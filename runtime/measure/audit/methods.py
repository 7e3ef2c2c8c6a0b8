"""Chooses the methods to audit."""

from __future__ import annotations

from collections.abc import Sequence

from fastblt.models.config import BltConfig
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.registry import Selection, audit_methods


def choose_methods(given: Sequence[str] | None, config: BltConfig) -> Selection:
    """Return the methods that a user asked for; None: the default ones of every method that the model can run.

    Raises:
        MethodError: a method that was given does not exist, or the model cannot run it.
    """
    if given is None:
        return audit_methods(config)
    for name in given:
        parse_method(name).check(config)
    return Selection(tuple(given), ())
