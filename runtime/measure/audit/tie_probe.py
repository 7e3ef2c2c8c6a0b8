"""Observes how narrow the choices of a method are while it writes a text again."""

from __future__ import annotations

import numpy as np

from fastblt.runtime.backends.protocol import DecoderRows, Floats
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Prompt, prompt_ids
from fastblt.runtime.methods import Method, rounds_of
from fastblt.runtime.methods.denoising import Confidence, EntropyBounded, Indices, MaximumBounded, Rule, Unmasking
from fastblt.runtime.sequence.sampling import Sampler


class TieProbe(Sampler):
    """Samples greedily, unmasks by a rule, and remembers the narrowest choice of either kind.

    Args:
        rule: decides which bytes of a block come next; None for a method that denoises no blocks.
    """

    def __init__(self, rule: Rule | None = None) -> None:
        super().__init__()
        self.rule = rule
        self.forget()

    def forget(self) -> None:
        """Begin a new round."""
        self.logit_gap = self.order_gap = float("inf")

    @property
    def takes_best(self) -> bool:
        """Return False: a backend that drafts by itself would choose unobserved."""
        return False

    def choose(self, rows: DecoderRows, index: int, *, masked: bool = True) -> int:
        """Choose a row's most likely token, and note by how much its logit exceeds the second one's."""
        second, best = np.partition(rows.logits[index], -2)[-2:].tolist()
        self.logit_gap = min(self.logit_gap, best - second)
        return super().choose(rows, index, masked=masked)

    def __call__(self, probability: Floats, entropy: Floats) -> Indices:
        """Apply the rule, and note how little would have changed which bytes it decides."""
        assert self.rule is not None
        self.order_gap = min(self.order_gap, unmasking_gap(self.rule, probability, entropy))
        return self.rule(probability, entropy)


def probe_round(reference: BltRuntime, prompt: Prompt, offset: int, method: Method) -> TieProbe:
    """Write a text again, greedily, up to and including the round that decides a new byte; probe that round's choices.

    Earlier rounds do not matter: however they came about, their bytes were the same, and nothing else is kept.

    Args:
        reference: the runtime that wrote the text.
        prompt: bytes, text or token ids.
        offset: of the byte in the new text.
        method: wrote the text. Where it is `Unmasking`, the order in which bytes are decided is probed too.
    """
    probe = TieProbe()
    if isinstance(method, Unmasking):
        probe = TieProbe(method.rule)
        method = method.with_rule(probe)
    with reference.session() as session:
        session.append(prompt_ids(prompt))
        end = session.length + offset
        for _ in rounds_of(method, session, probe):
            if session.length > end:
                break
            probe.forget()
    return probe


def unmasking_gap(rule: Rule, probability: Floats, entropy: Floats) -> float:
    """Return how little would have changed which bytes a rule decides: a probability, or nats; inf where nothing would.

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
    if isinstance(rule, EntropyBounded | MaximumBounded):
        ordered = np.sort(entropy)
        chosen = len(rule(probability, entropy))
        # The first byte is decided whatever the bound: only what sets of two and more add up to is compared with it.
        sums = np.cumsum(ordered)
        compared = sums[1:] if isinstance(rule, EntropyBounded) else sums[:-1]
        gaps += np.abs(compared - rule.gamma).tolist()
        gaps += np.diff(ordered[chosen - 1 : chosen + 1]).tolist()
    return min(gaps)
