"""Takes prompts of any kind, and returns ids as what the prompt was; PyTorch is used only by who passes a tensor."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastblt.models.tokens import decode, encode
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.huggingface.generate_settings import UnsupportedArgumentError


def is_tensor(value: object) -> bool:
    """Return whether a value is a PyTorch tensor; there is none where PyTorch has not been imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _to_numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if is_tensor(value) else np.asarray(value)


def prompt_row(prompt: Any) -> Ids:
    """Return the ids of a prompt of any kind, [n], BOS first; `prompt_ids` checks them where they are used.

    Raises:
        UnsupportedArgumentError: it is a single number, or several rows.
    """
    if isinstance(prompt, str | bytes):
        return encode(prompt)
    ids = _to_numpy(prompt)
    if ids.ndim == 0:
        raise UnsupportedArgumentError(f"input_ids: found {prompt!r}, expected ids [n] or [1, n]")
    if ids.ndim == 2 and len(ids) != 1:
        raise UnsupportedArgumentError(
            f"input_ids: found {len(ids)} rows, expected 1: sequences run one at a time, call generate() for each"
        )
    row: Ids = ids[0] if ids.ndim == 2 else ids
    return row


def check_mask(mask: Any, count: int) -> None:
    """Raise `UnsupportedArgumentError` where an attention mask is not None and not ``count`` ones."""
    if mask is None:
        return
    found = _to_numpy(mask)
    if found.shape not in ((count,), (1, count)) or not (found == 1).all():
        raise UnsupportedArgumentError(
            f"attention_mask: found shape {list(found.shape)} with {int((found == 0).sum())} zeros, expected {count} "
            "ones: a model of patches cannot leave padding out, give ids without it"
        )


def like(prompt: Any, ids: Ids, *, text: bool = False) -> Any:
    """Return ids as what the prompt is: a tensor on its device, or an array; with ``text``, text for text."""
    if text and isinstance(prompt, str | bytes):
        data = decode(ids[0])
        return data if isinstance(prompt, bytes) else data.decode("utf-8", errors="replace")
    return sys.modules["torch"].from_numpy(ids).to(prompt.device) if is_tensor(prompt) else ids
