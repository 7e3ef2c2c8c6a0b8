"""Reads back to the host what a decoder call found: three numbers per row, and the logits only if somebody looks."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastblt.runtime.backends.protocol import DecoderRows, Floats


def decoder_rows(logits: Tensor) -> DecoderRows:
    """Return what `BackendSequence.run_decoder` returns, for logits float32 [rows, vocab] on any device."""
    return read_rows(logits, summarize(logits))


def summarize(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best token int64 [rows], its probability and the entropy, nats, of logits float32 [rows, vocab]."""
    logp = logits.log_softmax(-1)
    best_logp, best = logp.max(-1)
    probabilities = logp.exp()
    return best, best_logp.exp(), -(probabilities * logp).sum(-1)


def read_rows(logits: Tensor, summary: tuple[Tensor, Tensor, Tensor]) -> DecoderRows:
    """Return rows of logits float32 [rows, vocab] and their `summarize`; from a GPU in one copy, without the logits."""
    best, probability, entropy = summary
    if logits.device.type == "cpu":
        return DecoderRows(best.numpy(), probability.numpy(), entropy.numpy(), logits.numpy())
    # Tokens are far below 2^24, so that fp32 holds them exactly.
    packed = torch.stack([best.float(), probability, entropy]).cpu().numpy()
    return _LazyRows(packed[0].astype(np.int64), packed[1], packed[2], _Logits(logits))


class _Logits:
    """Copies logits to the host when they are first asked for, and once."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def array(self) -> Floats:
        found: Floats = self.tensor.cpu().numpy()
        return found


class _LazyRows(DecoderRows):
    """Holds rows whose logits are on the device; the last field of the tuple is a `_Logits`."""

    __slots__ = ()

    def __new__(cls, *fields: object) -> _LazyRows:
        made: _LazyRows = tuple.__new__(cls, fields)
        return made

    @property
    def logits(self) -> Floats:
        """Return the logits, float32 [n, vocab], after the copy to the host that this takes."""
        lazy = cast(_Logits, tuple.__getitem__(self, 3))
        return lazy.array

    def part(self, start: int, end: int | None = None) -> DecoderRows:
        """Return the rows from ``start`` to before ``end``; their logits stay where they are."""
        at = slice(start, end)
        lazy = cast(_Logits, tuple.__getitem__(self, 3))
        return _LazyRows(self.best[at], self.probability[at], self.entropy[at], _Logits(lazy.tensor[at]))


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of any floating-point type on the host; a view where it is there already."""
    host = tensor.cpu()
    if host.dtype != torch.bfloat16:
        found: NDArray[Any] = host.numpy()
        return found
    return host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def from_numpy(array: NDArray[Any]) -> Tensor:
    """Return an array of any floating-point type as a tensor on the host, copied."""
    if array.dtype != ml_dtypes.bfloat16:
        return torch.tensor(array)
    return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
