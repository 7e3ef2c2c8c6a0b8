"""Turns the settings of transformers' ``generate`` into a `GenerationRequest`, or refuses them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastblt.models.shown import shown
from fastblt.models.tokens import EOS_ID
from fastblt.runtime.methods import Method
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.sequence.sampling import is_number

#: New tokens where the caller specifies neither ``max_new_tokens`` nor ``max_length``; as in transformers.
DEFAULT_NEW_TOKENS = 20

#: Arguments of `generate` in transformers that this class reads from a generation config.
_HONORED = (
    "max_new_tokens",
    "max_length",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "eos_token_id",
)
#: Those that change nothing here: caches are always used, and one sequence has no padding.
_WITHOUT_EFFECT = {"use_cache", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"}
#: Those that change nothing in greedy decoding.
_OF_SAMPLING = {"top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
#: Those that are off at 1; any other is off where it is None, False, 0 or empty.
_OFF_AT_ONE = {
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
    "typical_p",
    "guidance_scale",
}


class UnsupportedArgumentError(ValueError):
    """Reports an argument that cannot be honored, and why."""


def as_mapping(generation_config: Any) -> dict[str, Any]:
    """Return the settings of a generation config that are not None.

    Raises:
        UnsupportedArgumentError: it is neither a ``GenerationConfig`` nor a mapping.
    """
    if generation_config is None:
        return {}
    found = generation_config.to_dict() if hasattr(generation_config, "to_dict") else generation_config
    if not isinstance(found, Mapping):
        raise UnsupportedArgumentError(
            f"generation_config: found {type(found).__name__}, expected a GenerationConfig or a mapping"
        )
    return {name: value for name, value in found.items() if value is not None}


def is_off(value: object) -> bool:
    """Return whether a value is None, False, 0 or empty."""
    return value is None or (isinstance(value, bool | int | float | str | list | tuple | dict) and not value)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `UnsupportedArgumentError` where one of them would change the output and cannot be honored."""
    for name, value in settings.items():
        without_effect = name in _WITHOUT_EFFECT or (name in _OF_SAMPLING and not settings.get("do_sample"))
        off = is_off(value) or (name in _OFF_AT_ONE and value == 1)
        if name not in _HONORED and not without_effect and not off:
            raise UnsupportedArgumentError(
                f"{name}: found {shown(value)}, but generate() has {', '.join(_HONORED)}, streamer, seed and method "
                "only"
            )


def generation_request(
    settings: Mapping[str, Any],
    prompt: int,
    method: str | Method | None,
    seed: int | None,
    form: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """Return the request that settings describe; those of sampling count only where ``do_sample`` is True.

    Args:
        settings: checked by `check_settings`, None left out.
        prompt: its tokens, BOS included.
        method: as in `GenerationRequest`.
        seed: as in `GenerationRequest`.
        form: its fields about the form of the text; None: any.

    Raises:
        UnsupportedArgumentError: ``eos_token_id`` is neither the model's EOS nor negative.
        ValueError: a setting, the method or the seed is out of range.
    """
    sampled = _samples(settings)
    return GenerationRequest(
        max_new_bytes=_new_tokens(settings, prompt),
        method=method,
        temperature=_sampling_temperature(settings) if sampled else 0.0,
        top_p=settings.get("top_p", 1.0) if sampled else 1.0,
        top_k=settings.get("top_k", 0) if sampled else 0,
        min_p=settings.get("min_p", 0.0) if sampled else 0.0,
        seed=seed,
        stop_at_eos=_stops_at_eos(settings.get("eos_token_id", EOS_ID)),
        **(form or {}),
    )


def _new_tokens(settings: Mapping[str, Any], prompt: int) -> int:
    """Return the most new tokens after a prompt of so many."""
    if "max_new_tokens" not in settings and "max_length" in settings:
        length = settings["max_length"]
        if not _is_integer(length) or length <= prompt:
            raise ValueError(
                f"max_length: found {shown(length)}, expected more than the prompt's {prompt} ids, an integer"
            )
        return int(length) - prompt
    count = settings.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if not _is_integer(count) or count < 1:
        raise ValueError(f"max_new_tokens: found {shown(count)}, expected a positive integer")
    return int(count)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _samples(settings: Mapping[str, Any]) -> bool:
    """Return whether ``do_sample`` asks for sampling."""
    value = settings.get("do_sample", False)
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"do_sample: found {shown(value)}, expected True or False")
    return bool(value)


def _sampling_temperature(settings: Mapping[str, Any]) -> float:
    """Return the temperature of sampling, > 0."""
    value = settings.get("temperature", 1.0)
    if not is_number(value) or not value > 0.0:
        raise ValueError(f"temperature: found {shown(value)}, expected a number > 0 (do_sample=False is greedy)")
    return float(value)


def _stops_at_eos(eos: Any) -> bool:
    """Return whether EOS ends the text; ``eos`` is an id, or several."""
    ids = np.ravel(eos).tolist()  # a tensor on the host too
    if set(ids) == {EOS_ID}:
        return True
    if ids and all(isinstance(i, int) and i < 0 for i in ids):
        return False
    raise UnsupportedArgumentError(
        f"eos_token_id: found {shown(eos)}, expected {EOS_ID}, the model's EOS, or -1 for none"
    )
