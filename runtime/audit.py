"""Is a method's greedy output the autoregressive one, byte for byte? And if not, is it a float tie?

Rows that are computed in chunks and rows that are computed one by one are rounded differently, by a few 1e-6. Where
the two best bytes of a row are closer than that, either may come out. Such a tie is told from a fault by the
reference's own logits at the first difference: they must lie within a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastblt.models.tokens import BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.session import Session

#: Largest logit difference of a tie, by the type of the graphs.
TIE_BOUND = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 4e-1}


@dataclass(frozen=True)
class Difference:
    """The first place where an output leaves the reference."""

    prompt: str
    """Identifier of the prompt."""
    offset: int
    """Of the byte in the new text."""
    logit_gap: float
    """Difference of the reference's logits of the two tokens; 0 would be an exact tie."""
    boundary_gap: float
    """Smallest distance, in nats, of an entropy to the patching threshold before that byte."""


@dataclass
class AuditRow:
    """What was found for one backend and method."""

    backend: str
    method: str
    prompts: int = 0
    bytes: int = 0
    """Bytes generated."""
    identical: int = 0
    """Prompts whose output is the reference's."""
    ties: list[Difference] = field(default_factory=list)
    """Differences within the bound."""
    faults: list[Difference] = field(default_factory=list)
    """Differences beyond it."""


def audit(
    reference: BltRuntime,
    candidates: Sequence[tuple[BltRuntime, str]],
    prompts: Sequence[tuple[str, bytes]],
    max_new_bytes: int,
    bound: float,
    on_prompt: Callable[[int], None] | None = None,
) -> list[AuditRow]:
    """Generate greedily with every candidate and compare with the reference's ``ar``.

    Args:
        reference: its autoregressive output is the truth.
        candidates: runtimes and methods.
        prompts: identifiers and bytes.
        max_new_bytes: of each generation.
        bound: largest logit difference of a tie.
        on_prompt: told the number of prompts done.
    """
    rows = [AuditRow(runtime.backend.name, method) for runtime, method in candidates]
    for done, (name, prompt) in enumerate(prompts, 1):
        expected = reference.generate(prompt, max_new_bytes).data
        for row, (runtime, method) in zip(rows, candidates, strict=True):
            found = runtime.generate(prompt, max_new_bytes, method=method).data
            row.prompts += 1
            row.bytes += len(found)
            if found == expected:
                row.identical += 1
                continue
            difference = explain(reference, name, prompt, expected, found)
            (row.ties if difference.logit_gap <= bound else row.faults).append(difference)
        if on_prompt:
            on_prompt(done)
    return rows


def explain(reference: BltRuntime, name: str, prompt: bytes, expected: bytes, found: bytes) -> Difference:
    """Score the common beginning with the reference and measure how close the two tokens are."""
    offset = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    session = Session(reference.backend)
    session.append(encode(prompt + expected[:offset], bos=False))
    entropies = np.concatenate(list(_patcher_entropies(session)))
    logits = session.score().logits[-1]
    gap = abs(float(logits[_token(expected, offset)]) - float(logits[_token(found, offset)]))
    distance = np.abs(entropies - reference.config.patching.threshold)
    return Difference(name, offset, gap, float(distance.min()))


def _token(data: bytes, offset: int) -> int:
    """The token at an offset; an output that ends early ended with EOS."""
    return data[offset] + BYTE_OFFSET if offset < len(data) else EOS_ID


def _patcher_entropies(session: Session) -> Iterator[np.ndarray]:
    tokens = session.tokens.copy()
    for first in range(0, len(tokens), 256):
        yield session.backend.run_patcher(first, tokens[first : first + 256]).copy()
