"""Turns the harness's settings of a generation into a `GenerationRequest`, or refuses them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastblt.models.shown import shown
from fastblt.runtime.methods import Method
from fastblt.runtime.request import GenerationRequest

#: Most new tokens where a task specifies none; as in the harness.
DEFAULT_NEW_TOKENS = 256
#: What the harness calls the most new tokens, in the order in which it reads them.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_HONORED = (*_LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p")
#: Settings that are off at 1; any other is off where it is None, False, 0 or empty.
_OFF_AT_ONE = ("num_beams", "num_return_sequences", "repetition_penalty", "length_penalty")


def generation_request(
    settings: Mapping[str, Any], method: str | Method | None, bytes_per_token: int, seed: int
) -> GenerationRequest:
    """Return what to generate; settings of sampling count only where the task samples.

    Args:
        settings: the task's ``generation_kwargs``.
        method: as in `GenerationRequest`.
        bytes_per_token: bytes that a task's most new tokens stand for, each.
        seed: of sampling.

    Raises:
        MethodError: the method does not exist.
        SamplingError: a parameter of sampling is out of range.
        ValueError: a setting that would change the text and that does not exist here, or one that is out of range.
    """
    for name, value in settings.items():
        off = not value or (name in _OFF_AT_ONE and value == 1)
        if name not in _HONORED and not off:
            raise ValueError(f"generation_kwargs: found {name}={shown(value)}, expected {', '.join(_HONORED)}")
    length = next((settings[name] for name in _LENGTHS if settings.get(name) is not None), DEFAULT_NEW_TOKENS)
    temperature = float(settings.get("temperature") or 0.0)
    sampled = bool(settings.get("do_sample", temperature > 0.0)) and temperature > 0.0
    sampling: dict[str, Any] = {}
    if sampled:
        names = ("temperature", "top_p", "top_k", "min_p")
        sampling = {name: settings[name] for name in names if settings.get(name) is not None} | {"seed": seed}
    until = settings.get("until") or []
    return GenerationRequest(
        max_new_bytes=int(length) * bytes_per_token,
        method=method,
        stop=[text for text in ([until] if isinstance(until, str) else until) if text],
        **sampling,
    )
