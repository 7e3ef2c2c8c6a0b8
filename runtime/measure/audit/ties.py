"""Tells a float tie from a fault where two texts differ.

Rows that are computed in chunks and rows that are computed one by one are rounded differently, by a few 1e-6. Where
the two best bytes of a row are closer than that, either may come out. What the *reference* computes at the first
difference decides: in a tie, one of its choices there was that narrow. A choice is that of a byte (two logits) or, in
a block that is denoised, of the bytes to decide next (`TieProbe`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastblt.models.tokens import BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.backends.protocol import DecoderRows, Floats
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.methods import Method
from fastblt.runtime.methods.block_diffusion import BlockDiffusion
from fastblt.runtime.methods.denoising import Confidence, EntropyBounded, Indices, Rule
from fastblt.runtime.sequence.sampling import Distribution, Sampler
from fastblt.runtime.sequence.session import Session

#: Largest gap of a tie, by the type of the graphs: in logits, in nats of an entropy, or in a probability (which move
#: less than logits do). Logits of trained models stay below 32 in size, so that rounding one once moves it by up to 32
#: times the type's unit roundoff: 1.9e-6 (fp32, 2^-24), 1.6e-2 (fp16, 2^-11), 1.3e-1 (bf16, 2^-8). Between two orders
#: of computation lie the roundings of all layers in fp32: fifty are allowed. Half-precision graphs add up in fp32, so
#: fewer roundings are in their own type: three are allowed.
TIE_BOUND = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 4e-1}


@dataclass(frozen=True)
class Difference:
    """The first place where an output leaves what it is compared with."""

    prompt: str
    """Identifier of the prompt."""
    offset: int
    """Of the byte in the new text."""
    logit_gap: float
    """Difference of the reference's logits of the two tokens; in a block, the narrowest one of the two best tokens
    of any byte that was decided in it. 0 would be an exact tie."""
    boundary_gap: float
    """Smallest distance, in nats, of an entropy to the patching threshold before that byte."""
    order_gap: float | None = None
    """In a block: by how much (probability, or nats) other bytes would have been decided in one of its steps; None
    where all are decided at once."""

    @property
    def gap(self) -> float:
        """The narrowest choice of bytes that may explain the difference."""
        return self.logit_gap if self.order_gap is None else min(self.logit_gap, self.order_gap)

    def is_tie(self, bound: float) -> bool:
        """Whether rounding explains it. A narrow patch end does not count: among many bytes one is always narrow."""
        return self.gap <= bound


def explain(
    reference: BltRuntime, name: str, prompt: bytes, expected: bytes, found: bytes, method: Method | None = None
) -> Difference:
    """Measure how narrow the reference's choices were at the first difference.

    Args:
        reference: wrote ``expected``.
        name: of the prompt.
        prompt: its bytes.
        expected: the reference's text.
        found: another text.
        method: of both; None: ``ar``.
    """
    offset = common_prefix(expected, found)
    session = Session(reference.backend)
    session.append(encode(prompt + expected[:offset], bos=False))
    entropies = np.concatenate(list(_patcher_entropies(session)))
    boundary = float(np.abs(entropies - reference.config.patching.threshold).min())
    if isinstance(method, BlockDiffusion):
        watched = watch(reference, prompt, offset, method)
        order = watched.order_gap if np.isfinite(watched.order_gap) else None
        return Difference(name, offset, watched.logit_gap, boundary, order)
    session = Session(reference.backend)
    session.append(encode(prompt + expected[:offset], bos=False))
    logits = session.score().logits[-1]
    gap = abs(float(logits[_token(expected, offset)]) - float(logits[_token(found, offset)]))
    return Difference(name, offset, gap, boundary)


class TieProbe(Sampler):
    """A greedy sampler and an unmasking rule that remember their narrowest choices.

    Args:
        rule: the rule of the method that is watched.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.forget()

    def forget(self) -> None:
        """Begin a new block."""
        self.logit_gap = self.order_gap = float("inf")

    def draw(self, rows: DecoderRows, index: int) -> tuple[int, Distribution | None]:
        """See `Sampler.draw`."""
        second, best = np.partition(rows.logits[index], -2)[-2:].tolist()
        self.logit_gap = min(self.logit_gap, best - second)
        return super().draw(rows, index)

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """See `Rule`."""
        self.order_gap = min(self.order_gap, unmasking_gap(self.rule, probability, entropy))
        return self.rule(probability, entropy)


def unmasking_gap(rule: Rule, probability: Floats, entropy: Floats) -> float:
    """How little would have changed which bytes a rule decides: a probability, or nats; inf where nothing would.

    Args:
        rule: confidence, entropy-bounded, or one step.
        probability: float32 [masked], top probabilities.
        entropy: float32 [masked], nats.
    """
    gaps = [float("inf")]
    if isinstance(rule, Confidence):
        gaps += np.abs(probability - rule.alpha).tolist()
        if not (probability > rule.alpha).any():
            gaps += (-np.diff(np.sort(probability)[::-1][:2])).tolist()
    if isinstance(rule, EntropyBounded):
        ordered = np.sort(entropy)
        chosen = len(rule(probability, entropy))
        # The first byte is decided whatever the bound: only sums of two and more are compared with it.
        gaps += np.abs(np.cumsum(ordered)[1:] - rule.gamma).tolist()
        gaps += np.diff(ordered[chosen - 1 : chosen + 1]).tolist()
    return min(gaps)


def watch(reference: BltRuntime, prompt: bytes, offset: int, method: BlockDiffusion) -> TieProbe:
    """Write the text again, up to and with the block that holds a new byte, and remember that block's choices.

    Earlier blocks do not matter: however they came about, their bytes were the same, and nothing else is kept.
    """
    watched = TieProbe(method.argument.rule)
    argument = dataclasses.replace(method.argument, rule=watched)
    session = Session(reference.backend)
    session.append(encode(prompt, bos=False))
    end = session.length + offset
    for _ in BlockDiffusion(argument).rounds(session, watched):
        if session.length > end:
            break
        watched.forget()
    return watched


def _token(data: bytes, offset: int) -> int:
    """The token at an offset; an output that ends early ended with EOS."""
    return data[offset] + BYTE_OFFSET if offset < len(data) else EOS_ID


def _patcher_entropies(session: Session) -> Iterator[np.ndarray]:
    tokens = session.tokens.copy()
    for first in range(0, len(tokens), 256):
        yield session.backend.run_patcher(first, tokens[first : first + 256]).copy()
