"""Audits a bundle from start to end: prompts, loading, comparison, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.registry import DEFAULT_BACKEND, backend_entry, load_reference
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.measure.audit.comparison import AuditRow, audit
from fastblt.runtime.measure.audit.growth import Together
from fastblt.runtime.measure.audit.methods import choose_methods
from fastblt.runtime.measure.audit.ties import TIE_BOUND
from fastblt.runtime.measure.requests import MOST_STREAMS, require_at_least
from fastblt.runtime.progress import OnProgress, no_progress

#: Prompts where a request specifies neither their number nor that of the bytes.
DEFAULT_PROMPTS = 64


class AuditError(ValueError):
    """An output differs from the reference by more than rounding, or less was written than was asked for."""


@dataclass(frozen=True)
class AuditRequest:
    """Specifies what an audit compares.

    Raises:
        ValueError: a number is out of range, or both prompts and bytes are given.
    """

    methods: tuple[str, ...] | None = None
    """None: those that the registry lists for audits, without those that the model cannot run."""
    backend: str = DEFAULT_BACKEND
    reference: str | None = None
    """Backend that decides what is right. None: eager, in fp32 whatever the bundle's dtype; for a quantized bundle,
    whose inputs eager does not round, the backend itself."""
    provider: str = "auto"
    prompts: int | None = None
    """Number of prompts; None: 64, or as many as ``bytes`` need."""
    max_new_bytes: int = 256
    """Bytes to generate after each prompt."""
    bytes: int | None = None
    """Continue until every method has written this many new bytes, instead of a number of prompts."""
    streams: int = 1
    """Texts that grow together, after prompts of mixed lengths; 1: one after the other."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(1, prompts=self.prompts, max_new_bytes=self.max_new_bytes, bytes=self.bytes)
        if not 1 <= self.streams <= MOST_STREAMS:
            raise ValueError(f"streams: found {self.streams}, expected 1..{MOST_STREAMS}")
        if self.bytes is not None and self.prompts is not None:
            raise ValueError("audit: found both prompts and bytes, expected one of them")


@dataclass(frozen=True)
class AuditReport:
    """Holds what an audit found."""

    bundle: Path
    request: AuditRequest
    reference: str
    """Name of the reference backend."""
    bound: float
    """Largest gap of a tie."""
    rows: list[AuditRow]
    """One for each method."""
    left_out: tuple[str, ...]
    """Default methods that the model cannot run."""
    model: str
    alone_because: str = ""
    """Why texts that grew together shared no calls; empty: they did, or grew one after the other."""

    @property
    def faults(self) -> int:
        """Return the number of outputs that differ by more than rounding."""
        return sum(len(row.faults) for row in self.rows)

    def check(self) -> None:
        """Raise `AuditError` where there are faults, or the texts ended before enough bytes were compared."""
        if self.faults:
            raise AuditError(
                f"{self.bundle}: found {self.faults} outputs that differ by more than rounding, expected none"
            )
        least, wanted = min(row.bytes for row in self.rows), self.request.bytes
        if wanted is not None and least < wanted:
            raise AuditError(f"{self.bundle}: found {least} bytes after all held-out prompts, expected {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "reference": f"{self.reference} ar",
            "tie_bound": self.bound,
            "max_new_bytes": self.request.max_new_bytes,
            "streams": self.request.streams,
            "calls_shared": self.request.streams > 1 and not self.alone_because,
            "bytes_compared": sum(row.bytes for row in self.rows),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def run_audit(
    bundle: Path,
    request: AuditRequest,
    prompts: Sequence[tuple[str, bytes]],
    on_progress: OnProgress = no_progress,
) -> AuditReport:
    """Load a bundle's backends and compare the text of every method with the reference's.

    Differences are part of the report; `AuditReport.check` raises.

    Args:
        bundle: folder of the bundle.
        request: what to compare.
        prompts: identifiers and bytes of all prompts there are; the request specifies how many are used.
        on_progress: called after every text.

    Raises:
        BundleError: the bundle cannot be used.
        MethodError: the model cannot run a method that was asked for.
        ValueError: there are fewer prompts than the request needs.
    """
    chosen = _choose_prompts(request, prompts)
    if request.streams > 1:
        chosen = of_mixed_lengths(chosen)
    opened = Bundle.open(bundle, check=False)
    methods, left_out = choose_methods(request.methods, opened.config)
    capacity = request.max_new_bytes + max(len(data) for _, data in chosen)
    # Every text is read from its beginning: the same calls whatever came before it.
    runtime = BltRuntime.from_pretrained(
        bundle,
        provider=request.provider,
        backend=request.backend,
        max_bytes=capacity,
        sequences=request.streams if request.streams > 1 else None,
        reuse_prompts=False,
    )
    truth = request.reference or (request.backend if opened.manifest.quantization else "eager")
    # In half precision the reference of a backend may be another model than the one that is audited.
    own = opened.manifest.dtype == "fp32" or backend_entry(truth).load_reference is None
    if truth == request.backend and own:
        reference = runtime
    else:
        load = LoadRequest(bundle, request.provider, capacity)
        reference = BltRuntime(load_reference(truth, load), reuse_prompts=False)
    bound = TIE_BOUND[opened.manifest.dtype]
    candidates = [(runtime, method) for method in methods]
    growth = Together(runtime, request.streams) if request.streams > 1 else None
    try:
        rows = audit(
            reference,
            candidates,
            chosen,
            request.max_new_bytes,
            bound,
            on_progress,
            wanted_bytes=request.bytes,
            growth=growth,
        )
        alone = growth.alone_because if growth is not None else ""
    finally:
        if growth is not None:
            growth.close()
    return AuditReport(bundle, request, reference.backend.name, bound, rows, left_out, opened.config.name, alone)


def _choose_prompts(request: AuditRequest, prompts: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
    """Return as many prompts as asked for; all of them where a number of bytes is to be reached."""
    if request.bytes is None:
        count = DEFAULT_PROMPTS if request.prompts is None else request.prompts
        if count > len(prompts):
            raise ValueError(f"prompts: found {count}, expected at most {len(prompts)}")
        return prompts[:count]
    most = len(prompts) * request.max_new_bytes
    if request.bytes > most:
        raise ValueError(
            f"bytes: found {request.bytes}, expected at most {most}: {len(prompts)} held-out prompts, "
            f"{request.max_new_bytes} new bytes each"
        )
    return prompts


def of_mixed_lengths(prompts: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return prompts of many lengths, and names with them: of five one is cut to a quarter, one to a half, one is long.

    The long one follows the four before it, so that it is, as a rule, more than `MAX_ROWS` bytes.
    """
    found = []
    for index, (name, data) in enumerate(prompts):
        if index % 5 == 1:
            data = data[: len(data) // 4]
        elif index % 5 == 3:
            data = data[: len(data) // 2]
        elif index % 5 == 4:
            data = b"".join(before for _, before in prompts[index - 4 : index + 1])
        found.append((f"{name} ({len(data)} bytes)", data))
    return found
