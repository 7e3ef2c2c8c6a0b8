"""Compares what methods write with the reference's text, byte for byte.

A lossless method has to write the reference backend's autoregressive text; any other one the text of the same method
on the reference backend. All generation is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Prompt
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.audit.growth import Grown, Growth, OneByOne
from fastblt.runtime.measure.audit.ties import Difference, explain
from fastblt.runtime.methods import Method, parse_method
from fastblt.runtime.progress import OnProgress, no_progress


@dataclass
class AuditRow:
    """Counts what was found for one backend and method."""

    backend: str
    method: str
    reference: str = ""
    """Backend and method that it is compared with."""
    prompts: int = 0
    bytes: int = 0
    """Bytes generated."""
    identical: int = 0
    """Prompts whose output is the reference's."""
    bytes_as_ar: int = 0
    """Bytes before the first difference from the reference's ``ar``; a figure, not a fault, where the method is not
    lossless."""
    ar_bytes: int = 0
    """Bytes of the reference's ``ar``."""
    ties: list[Difference] = field(default_factory=list)
    """Differences within the bound."""
    faults: list[Difference] = field(default_factory=list)
    """Differences beyond it."""


def audit(
    reference: BltRuntime,
    candidates: Sequence[tuple[BltRuntime, str | Method]],
    prompts: Sequence[tuple[str, Prompt]],
    max_new_bytes: int,
    bound: float,
    on_progress: OnProgress = no_progress,
    *,
    wanted_bytes: int | None = None,
    growth: Growth | None = None,
) -> list[AuditRow]:
    """Generate greedily with every candidate and compare with the reference.

    Args:
        reference: decides what is right: its ``ar`` for lossless methods, the same method for the others.
        candidates: runtimes and methods.
        prompts: identifiers, and bytes, text or token ids.
        max_new_bytes: bytes to generate after each prompt.
        bound: largest gap of a tie.
        on_progress: called after every text of a candidate; counts texts, or, with ``wanted_bytes``, bytes.
        wanted_bytes: stop when every candidate has written so many; None: use all prompts.
        growth: how the texts of the candidates grow; None: one after the other.
    """
    methods = [parse_method(method) for _, method in candidates]
    names = [_name(method) for _, method in candidates]
    rows = [
        AuditRow(runtime.backend.name, name, f"{reference.backend.name} {'ar' if method.lossless else name}")
        for (runtime, _), name, method in zip(candidates, names, methods, strict=True)
    ]

    def report(method: str) -> None:
        if wanted_bytes is None:
            on_progress(sum(row.prompts for row in rows), len(rows) * len(prompts), method)
        else:
            on_progress(sum(min(row.bytes, wanted_bytes) for row in rows), len(rows) * wanted_bytes, method)

    report("")
    growth = growth or OneByOne()
    runnable = [(runtime, method) for (runtime, _), method in zip(candidates, methods, strict=True)]
    for begin in range(0, len(prompts), growth.group):
        group = prompts[begin : begin + growth.group]
        truths = [_Truth(reference, name, prompt, max_new_bytes, bound) for name, prompt in group]
        for grown in growth.texts(runnable, [prompt for _, prompt in group], max_new_bytes):
            row = rows[grown.candidate]
            truths[grown.prompt].judge(row, methods[grown.candidate], grown)
            report(row.method)
        if wanted_bytes is not None and min(row.bytes for row in rows) >= wanted_bytes:
            break
    return rows


class _Truth:
    """Writes the reference's texts after a prompt, each of them once, and compares others with them."""

    def __init__(
        self, reference: BltRuntime, identifier: str, prompt: Prompt, max_new_bytes: int, bound: float
    ) -> None:
        self._reference = reference
        self._identifier = identifier
        self._prompt = prompt
        self._max_new_bytes = max_new_bytes
        self._bound = bound
        self._ar = reference.generate(prompt, max_new_bytes, method="ar").data
        self._known: dict[str, bytes] = {}

    def judge(self, row: AuditRow, method: Method, grown: Grown) -> None:
        """Compare a text that a method has written, and count what is found."""
        found, expected = grown.data, self._expected(row.method, method)
        row.prompts += 1
        row.bytes += len(found)
        row.bytes_as_ar += common_prefix(self._ar, found)
        row.ar_bytes += len(self._ar)
        if found == expected:
            row.identical += 1
            return
        difference = explain(self._reference, self._identifier, self._prompt, expected, found, method)
        if grown.alone is not None:
            difference = replace(difference, as_alone=grown.alone() == found)
        (row.ties if difference.is_tie(self._bound) else row.faults).append(difference)

    def _expected(self, name: str, method: Method) -> bytes:
        if method.lossless:
            return self._ar
        if name not in self._known:
            self._known[name] = self._reference.generate(self._prompt, self._max_new_bytes, method=method).data
        return self._known[name]


def _name(method: str | Method) -> str:
    return method if isinstance(method, str) else method.name
