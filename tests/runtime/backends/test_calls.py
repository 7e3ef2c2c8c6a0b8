"""Calls of parts: each is made by the method of a sequence that answers it, and knows its part and its rows."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.batching import (
    DecoderCall,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.protocol import BackendSequence

IDS = np.arange(12)
LATENTS = np.zeros(12, dtype=np.int64)


class Asked:
    """A sequence that notes which method is called, with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, arguments))


@pytest.mark.parametrize(
    ("call", "method", "part", "rows"),
    [
        (PatcherCall(3, IDS, None), "run_patcher", "patcher", 12),
        (EncoderCall(3, IDS, LATENTS, LATENTS, None), "run_encoder", "encoder", 9),  # three ids before them
        (GlobalCall(3, 2, None), "run_global", "global", 2),
        (DecoderCall(3, IDS, LATENTS, 0, None), "run_decoder", "decoder", 12),
        (DecoderCall(3, IDS, LATENTS, 4, None), "run_decoder", "draft", 12),
        (DraftCall(3, IDS, 1, 7, None, 0), "draft", "decoder", 1),
    ],
)
def test_a_call_is_answered_by_its_method(
    tiny_mixed_config: BltConfig, call: PartCall, method: str, part: str, rows: int
) -> None:
    asked = Asked()
    call.run(cast("BackendSequence", asked))
    assert asked.calls == [(method, tuple(call))]
    assert (call.part(tiny_mixed_config), call.rows(tiny_mixed_config)) == (part, rows)
