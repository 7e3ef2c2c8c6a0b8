"""The settings of transformers' ``generate``, as far as `ORTBltForCausalLM` has them: read, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastblt.models.tokens import EOS_ID

#: New tokens where the caller says neither ``max_new_tokens`` nor ``max_length``; as in transformers.
DEFAULT_NEW_TOKENS = 20

#: Arguments of `generate` in transformers that this class reads from a generation config.
_HONOURED = ("max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "eos_token_id")
#: Those that change nothing here: caches are always used, and one sequence has no padding.
_WITHOUT_EFFECT = {"use_cache", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"}
#: Those that change nothing in greedy decoding.
_OF_SAMPLING = {"top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
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
    """An argument that cannot be honoured; the message says why."""


def as_mapping(generation_config: Any) -> dict[str, Any]:
    """The settings of a generation config that are set."""
    if generation_config is None:
        return {}
    found = generation_config.to_dict() if hasattr(generation_config, "to_dict") else generation_config
    if not isinstance(found, Mapping):
        raise UnsupportedArgumentError(
            f"generation_config: found {type(found).__name__}, expected a GenerationConfig or a mapping"
        )
    return {name: value for name, value in found.items() if value is not None}


def is_off(value: object) -> bool:
    """Whether a value says nothing."""
    return value is None or (isinstance(value, bool | int | float | str | list | tuple | dict) and not value)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise where one of them would change the output and is not ours to change."""
    for name, value in settings.items():
        without_effect = name in _WITHOUT_EFFECT or (name in _OF_SAMPLING and not settings.get("do_sample"))
        off = is_off(value) or (name in _OFF_AT_ONE and value == 1)
        if name not in _HONOURED and not without_effect and not off:
            raise UnsupportedArgumentError(
                f"{name}: found {value!r}, but generate() has {', '.join(_HONOURED)}, streamer, seed and method only"
            )


def new_tokens(settings: Mapping[str, Any], prompt: int) -> int:
    """Most new tokens after a prompt of so many."""
    if "max_new_tokens" not in settings and "max_length" in settings:
        length = settings["max_length"]
        if not _is_integer(length) or length <= prompt:
            raise ValueError(f"max_length: found {length!r}, expected more than the prompt's {prompt} ids, an integer")
        return int(length) - prompt
    count = settings.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if not _is_integer(count) or count < 1:
        raise ValueError(f"max_new_tokens: found {count!r}, expected a positive integer")
    return int(count)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def samples(settings: Mapping[str, Any]) -> bool:
    """Whether ``do_sample`` asks for sampling."""
    value = settings.get("do_sample", False)
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"do_sample: found {value!r}, expected True or False")
    return bool(value)


def sampling_temperature(settings: Mapping[str, Any]) -> float:
    """Of sampling."""
    value = float(settings.get("temperature", 1.0))
    if not value > 0.0:
        raise ValueError(f"temperature: found {value}, expected a number > 0 (do_sample=False is greedy)")
    return value


def stops_at_eos(eos: Any) -> bool:
    """Whether EOS ends the text; ``eos``: an id, or ids."""
    ids = np.atleast_1d(eos).tolist()  # a tensor on the host too
    if set(ids) == {EOS_ID}:
        return True
    if ids and all(isinstance(i, int) and i < 0 for i in ids):
        return False
    raise UnsupportedArgumentError(f"eos_token_id: found {eos}, expected {EOS_ID}, the model's EOS, or -1 for none")
