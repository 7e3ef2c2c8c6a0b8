"""Distinguishes a float tie from a fault where two texts differ.

Rows that are computed in chunks and rows that are computed one by one are rounded differently, by a few 1e-6. Where
the two best bytes of a row are closer than that, either may come out. What the *reference* computes at the first
difference decides: in a tie, one of its choices there was that narrow. A choice is that of a byte (two logits) or, in
a block that is denoised, of the bytes to decide next (`fastblt.runtime.measure.audit.tie_probe`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.backends.protocol import MAX_ROWS, Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Prompt, prompt_ids
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.audit.tie_probe import probe_round
from fastblt.runtime.methods import Method
from fastblt.runtime.sequence.documents import Documents

#: Largest gap of a tie, by the type of the graphs: in logits, in nats of an entropy, or in a probability (which move
#: less than logits do). Logits of trained models stay below 32 in size, so that rounding one once moves it by up to 32
#: times the type's unit roundoff: 1.9e-6 (fp32, 2^-24), 1.6e-2 (fp16, 2^-11), 1.3e-1 (bf16, 2^-8). Between two orders
#: of computation are the roundings of all layers in fp32: fifty are allowed. Half-precision graphs add up in fp32, so
#: fewer roundings are in their own type: three are allowed.
TIE_BOUND = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 4e-1}


@dataclass(frozen=True)
class Difference:
    """Describes the first place where an output leaves what it is compared with."""

    prompt: str
    """Identifier of the prompt."""
    offset: int
    """Index of the byte in the new text."""
    logit_gap: float
    """Difference of the reference's logits of the two tokens; in a block, the narrowest one of the two best tokens
    of any byte that was decided in it. 0 would be an exact tie."""
    boundary_gap: float | None
    """Smallest distance, in nats, of an entropy to the patching threshold before that byte; None where entropies do
    not close patches."""
    order_gap: float | None = None
    """In a block: by how much (probability, or nats) other bytes would have been decided in one of its steps; None
    where all are decided at once."""
    as_alone: bool | None = None
    """Of a text that grew together with others: whether the same backend writes it alone, too; None: it grew alone."""

    @property
    def gap(self) -> float:
        """Return the narrowest choice of bytes that may explain the difference."""
        return self.logit_gap if self.order_gap is None else min(self.logit_gap, self.order_gap)

    def is_tie(self, bound: float) -> bool:
        """Return whether rounding explains it; a narrow patch end does not, as among many bytes one always is."""
        return self.gap <= bound


def explain(
    reference: BltRuntime, name: str, prompt: Prompt, expected: bytes, found: bytes, method: Method | None = None
) -> Difference:
    """Measure how narrow the reference's choices were at the first difference.

    Args:
        reference: wrote ``expected``.
        name: identifier of the prompt.
        prompt: bytes, text or token ids that both texts follow.
        expected: the reference's text.
        found: another text, which differs from it.
        method: wrote ``expected``; None: ``ar``.
    """
    offset = common_prefix(expected, found)
    before = np.concatenate([prompt_ids(prompt), encode(expected[:offset], bos=False)])
    boundary = boundary_gap(reference, before)
    if method is not None and not method.lossless:
        probe = probe_round(reference, prompt, offset, method)
        if math.isfinite(probe.logit_gap):
            order = probe.order_gap if math.isfinite(probe.order_gap) else None
            return Difference(name, offset, probe.logit_gap, boundary, order)
    with reference.session() as session:
        session.append(before)
        logits = session.score().logits[-1].copy()
    gap = abs(float(logits[_token(expected, offset)]) - float(logits[_token(found, offset)]))
    return Difference(name, offset, gap, boundary)


def boundary_gap(reference: BltRuntime, ids: Ids) -> float | None:
    """Return the smallest distance, in nats, of the patcher's entropies to the threshold that closes patches.

    Args:
        reference: its model computes the entropies.
        ids: int64 [n], the tokens after BOS.

    Returns:
        None where the model's patches are not closed by entropies.
    """
    config = reference.config
    if config.patching.mode != "entropy":
        return None
    tokens = np.concatenate([[BOS_ID], ids]).astype(np.int64)
    documents = Documents(len(tokens))
    if config.document_masks:
        documents.extend(0, tokens)
    gaps = []
    with reference.session() as session:
        for first in range(0, len(tokens), MAX_ROWS):
            piece = tokens[first : first + MAX_ROWS]
            seen = documents.bytes_seen(first, first + len(piece))
            entropies = session.sequence.run_patcher(first, piece, seen)
            gaps.append(float(np.abs(entropies - config.patching.threshold).min()))
    return min(gaps)


def _token(data: bytes, offset: int) -> int:
    """Return the token at an offset; an output that ends early ended with EOS."""
    return data[offset] + BYTE_OFFSET if offset < len(data) else EOS_ID
