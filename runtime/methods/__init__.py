"""Decoding methods by name: ``ar``, ``s:K``, ``d:B@RULE``, ``dv:B@RULE``, ``auto``."""

from __future__ import annotations

from collections.abc import Callable

from fastblt.runtime.methods.adaptive.policy import Adaptive
from fastblt.runtime.methods.ar import Autoregressive
from fastblt.runtime.methods.block_diffusion import BlockDiffusion
from fastblt.runtime.methods.diffusion_verification import DiffusionVerification
from fastblt.runtime.methods.method import Method, MethodError, Origin, Round
from fastblt.runtime.methods.self_speculation import SelfSpeculation

__all__ = ["METHODS", "Method", "MethodError", "Origin", "Round", "parse_method"]

#: What reads the argument of a method, by its name.
METHODS: dict[str, Callable[[str], Method]] = {
    "ar": Autoregressive.parse,
    "s": SelfSpeculation.parse,
    "d": BlockDiffusion.parse,
    "dv": DiffusionVerification.parse,
    "auto": Adaptive.parse,
}


def parse_method(text: str) -> Method:
    """The method that a name such as ``ar``, ``s:8`` or ``d:8@0.7`` means.

    Raises:
        MethodError: unknown name or bad argument; the message lists what exists.
    """
    name, _, argument = text.partition(":")
    if name not in METHODS:
        raise MethodError(
            f"method {text!r}: unknown, expected ar, s:K (for example s:8), d:B@RULE (d:8@0.7, d:8@eb1.0), "
            "dv:B@RULE (dv:8@one) or auto"
        )
    return METHODS[name](argument)
