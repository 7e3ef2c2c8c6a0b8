"""Denoises a block: which bytes to decide in each step, and the steps (arXiv 2605.08044, Algorithm 1).

The bytes of a block are decided in several decoder calls over the block alone; a decided byte is seen by the others
in the next call.

Where a byte of the block is verified later (BLT-DV, sampled), the distribution it was drawn from counts only if it was
drawn *given the bytes before it*: no byte before it may have been decided in a later step. Bytes of the same step are
drawn independently. The other bytes have no distribution, and `Sampler.verify` is lossless for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.protocol import DecoderRows, Floats, Ids
from fastblt.runtime.methods.legal_block import LegalBlock
from fastblt.runtime.methods.method import Method, MethodError
from fastblt.runtime.sequence.requests import Steps, denoise
from fastblt.runtime.sequence.sampling import Distribution, Draft, Sampler, log_probabilities

Indices = NDArray[np.intp]


class Rule(Protocol):
    """Chooses the masked bytes to decide in a step."""

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """Return indices into the masked bytes, at least one, of their top probabilities and entropies (nats)."""
        ...


@dataclass(frozen=True)
class Confidence:
    """Chooses all bytes whose top probability is greater than ``alpha``; else the single most probable one."""

    alpha: float

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """Implement `Rule`."""
        sure = np.flatnonzero(probability > self.alpha)
        return sure if len(sure) else np.array([probability.argmax()])


@dataclass(frozen=True)
class EntropyBounded:
    """Chooses the bytes of lowest entropy whose entropies add up to at most ``gamma`` nats; at least one."""

    gamma: float

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """Implement `Rule`."""
        order = np.argsort(entropy, kind="stable")
        within = int((np.cumsum(entropy[order]) <= self.gamma).sum())
        return order[: max(1, within)]


@dataclass(frozen=True)
class MaximumBounded:
    """Chooses the most bytes of lowest entropy whose entropies, without the highest, add up to at most ``gamma`` nats.

    This is the bound of the EB-Sampler (Ben-Hamu et al., 2025, arXiv 2505.24857): the sum minus the highest entropy
    bounds what is lost where bytes are drawn independently. A single byte loses nothing and always fits.
    """

    gamma: float

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """Implement `Rule`."""
        order = np.argsort(entropy, kind="stable")
        # In this order the highest is the last: what remains of the sum is that of the bytes before it.
        within = int((np.cumsum(entropy[order[:-1]]) <= self.gamma).sum())
        return order[: 1 + within]


@dataclass(frozen=True)
class OneStep:
    """Chooses all bytes at once."""

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """Implement `Rule`."""
        return np.arange(len(probability))


#: Rules over entropies, by what precedes gamma; a longer prefix comes before one that it begins with.
_BOUNDED: dict[str, Callable[[float], Rule]] = {"ebmax": MaximumBounded, "eb": EntropyBounded}


def parse_rule(text: str) -> Rule:
    """Return the rule that ``one``, ``0.7`` (alpha), ``eb1.0`` or ``ebmax1.0`` (gamma) stands for.

    Raises:
        MethodError: none of them, or out of range.
    """
    if text == "one":
        return OneStep()
    prefix = next((prefix for prefix in _BOUNDED if text.startswith(prefix)), "")
    try:
        value = float(text.removeprefix(prefix))
    except ValueError:
        value = -1.0
    if prefix and 0.0 <= value < float("inf"):
        return _BOUNDED[prefix](value)
    if not prefix and 0.0 <= value < 1.0:
        return Confidence(value)
    raise MethodError(
        f"unmasking rule {text!r}: expected one (all at once), a confidence in [0, 1) such as 0.7, "
        "or an entropy bound in nats: eb and that of the sum such as eb1.0, ebmax and that of the sum without the "
        "highest such as ebmax1.0"
    )


@runtime_checkable
class Unmasking(Protocol):
    """Marks a method that decides the bytes of its blocks by a rule, which another one can observe or replace."""

    @property
    def rule(self) -> Rule:
        """Return the rule."""
        ...

    def with_rule(self, rule: Rule) -> Method:
        """Return the same method with another rule."""
        ...


#: The first call over a wholly masked block: the row of the byte before the block, and the block's rows.
FirstPass = Callable[[Ids], Steps[tuple[DecoderRows, DecoderRows]]]


def denoise_block(sampler: Sampler, size: int, rule: Rule, first_pass: FirstPass, *, clean_first: bool) -> Steps[Draft]:
    """Decide a block, byte by byte or many at once.

    Args:
        sampler: draws the bytes.
        size: bytes of the block.
        rule: which bytes to decide in each step.
        first_pass: the first step's decoder call; the others are `fastblt.runtime.sequence.requests.denoise`.
        clean_first: take the first byte from the row of the byte before the block, which predicts it causally and
            is part of the first call anyway; False: from the block, as the paper does.

    Returns:
        The block as a draft, as far as a grammar allows it; its log-probabilities, where wanted, are those of the rows
        that decided each byte.
    """
    block = np.full(size, MASK_ID, dtype=np.int64)
    decided = np.full(size, -1)  # step of each byte
    proposals: list[Distribution | None] = [None] * size
    logprobs = np.zeros(size)
    before, rows = yield from first_pass(block)
    legal = LegalBlock(sampler, block)
    if clean_first:
        proposals[0] = legal.draw(before, -1, 0)
        decided[0] = 0
        if sampler.logprobs:
            logprobs[:1] = log_probabilities(before.logits[-1:], block[:1])
    step = 0
    while len(masked := np.flatnonzero(decided < 0)):
        if step:
            rows = yield from denoise(block)
        chosen = masked[rule(rows.probability[masked], rows.entropy[masked])]
        for index in chosen.tolist():
            proposals[index] = legal.draw(rows, index, index)
        decided[chosen] = step
        if sampler.logprobs:
            logprobs[chosen] = log_probabilities(rows.logits[chosen], block[chosen])
        step += 1
    # A byte whose predecessors were decided later was not drawn given them.
    late = np.maximum.accumulate(decided) > decided
    known = [None if late[i] else q for i, q in enumerate(proposals)]
    tokens, forced = legal.finish()
    return Draft(tokens, known[: len(tokens) - forced], tuple(logprobs.tolist()) if sampler.logprobs else (), forced)
