"""Compares what a bundle computes on this machine's GPU and on the CPU, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

from fastblt.models.tokens import encode
from fastblt.runtime.measure.verify.comparison import Comparison
from fastblt.runtime.measure.verify.lockstep import InspectableBackend, LockstepBackend
from fastblt.runtime.methods import Method, rounds_of
from fastblt.runtime.progress import OnProgress, no_progress
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session


def compare_rounds(
    reference: InspectableBackend,
    candidate: InspectableBackend,
    methods: Sequence[Method],
    prompts: Sequence[bytes],
    new_bytes: int,
    on_progress: OnProgress = no_progress,
) -> list[Comparison]:
    """Run real rounds of every method on both backends, the candidate with the reference's inputs, and compare.

    Args:
        reference: decides what is generated.
        candidate: is compared.
        methods: each of them writes after every prompt.
        prompts: bytes, of several lengths: the graphs see calls of as many rows.
        new_bytes: to generate, at least, after each.
        on_progress: called after every text.

    Returns:
        One entry for each graph and output, caches included.
    """
    both, learned = LockstepBackend(reference, candidate), Learned()
    done, total = 0, len(methods) * len(prompts)
    on_progress(done, total, "")
    for method in methods:
        for prompt in prompts:
            with Session(both, learned=learned) as session:
                session.append(encode(prompt, bos=False))
                end = session.length + new_bytes
                for _ in rounds_of(method, session, Sampler()):
                    if session.length >= end:
                        break
                both.compare_caches()
            done += 1
            on_progress(done, total, method.name)
    order = list(reference.config.graph_stacks)
    return sorted(both.comparisons.values(), key=lambda found: (order.index(found.graph), found.output))
