"""Describes a method to everything that offers methods to a user: help, errors, defaults and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.method import Method


def no_names(config: BltConfig) -> tuple[str, ...]:
    """Return no names, whatever the model."""
    return ()


@dataclass(frozen=True)
class MethodEntry:
    """Holds what is known of a method before it is used; see `fastblt.runtime.methods.registry`."""

    name: str
    """What a user writes before the colon, e.g. ``s``."""
    syntax: str
    """The name and its argument, e.g. ``s:K``."""
    examples: tuple[str, ...]
    """Complete names that `parse` accepts; at least one."""
    summary: str
    """What the method does, in a few plain words and without a full stop."""
    parse: Callable[[str], Method]
    """Builds the method from the text after the colon (empty where there is none); raises `MethodError`."""
    audited: tuple[str, ...] = ()
    """Complete names that ``audit`` and ``verify`` run by default, where the model can run them."""
    benchmarked: tuple[str, ...] = ()
    """Complete names that ``bench`` measures by default."""
    traced: Callable[[BltConfig], tuple[str, ...]] = no_names
    """Returns the complete names that calibration records a model's activations with."""
    tuned: tuple[str, ...] = ()
    """Complete names that ``tune`` compares by default, where the model can run them."""
    needs: str = "any model"
    """Which models can run it, in a few words; `Method.check` decides."""

    @property
    def lossless(self) -> bool:
        """Return whether the method writes what the autoregressive method would write (see `Method.lossless`)."""
        return self.parse(self.examples[0].partition(":")[2]).lossless
