"""Verifies a bundle on this machine's GPU from start to end: loading, tensors, texts, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.registry import DEFAULT_BACKEND, load_backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import engine_folders, load_engine_folder
from fastblt.runtime.bundle.manifest import Manifest
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.audit.comparison import AuditRow, audit
from fastblt.runtime.measure.audit.methods import choose_methods
from fastblt.runtime.measure.audit.run import AuditError
from fastblt.runtime.measure.audit.ties import TIE_BOUND
from fastblt.runtime.measure.requests import require_at_least
from fastblt.runtime.measure.verify.comparison import Comparison
from fastblt.runtime.measure.verify.reference import DeviceError, Emulate, cpu_reference
from fastblt.runtime.measure.verify.rounds import compare_rounds
from fastblt.runtime.measure.verify.tolerance import Tolerance, judge, require_polygraphy, tolerance_of
from fastblt.runtime.methods import parse_method
from fastblt.runtime.progress import OnProgress, no_progress, part_of

#: Lengths of the prompts of the tensor comparison, bytes: one row, a few, more than one call, past the windows.
PROMPT_BYTES = (0, 5, 100, 700)
#: Prompts of the audit are cut to this many bytes.
AUDIT_PROMPT_BYTES = 96


@dataclass(frozen=True)
class VerifyRequest:
    """Specifies what a verification runs.

    Raises:
        ValueError: a number is out of range.
    """

    backend: str | None = None
    """None: that of the engines in the bundle, else ONNX Runtime."""
    provider: str = "cuda"
    """Of ONNX Runtime."""
    methods: tuple[str, ...] | None = None
    """None: those that an audit runs by default."""
    prompts: int = 4
    """Prompts of the audit."""
    max_new_bytes: int = 64
    """Bytes to generate after each prompt."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least(1, prompts=self.prompts, max_new_bytes=self.max_new_bytes)


@dataclass(frozen=True)
class VerifyReport:
    """Holds what a verification found."""

    bundle: Path
    manifest: Manifest
    backend: str
    device: str
    sm: int
    """Compute capability of the GPU, e.g. 89."""
    comparisons: list[Comparison]
    """One for each graph and output, caches included."""
    rows: list[AuditRow]
    """One for each method."""
    left_out: tuple[str, ...]
    """Default methods that the model cannot run."""

    @property
    def wrong(self) -> list[Comparison]:
        """Return the outputs that differ by more than rounding."""
        return [found for found in self.comparisons if not self.accepts(found)]

    @property
    def faults(self) -> int:
        """Return the number of texts that differ by more than rounding."""
        return sum(len(row.faults) for row in self.rows)

    @property
    def passed(self) -> bool:
        """Return whether rounding explains all differences."""
        return not self.wrong and not self.faults

    @property
    def tie_bound(self) -> float:
        """Return the largest gap of a tie."""
        return TIE_BOUND[self.manifest.dtype]

    @cached_property
    def _verdicts(self) -> dict[tuple[str, str], bool]:
        return judge(self.comparisons, self.manifest.dtype)

    def accepts(self, found: Comparison) -> bool:
        """Return whether rounding explains the differences of an output."""
        return self._verdicts[found.graph, found.output]

    def limit(self, found: Comparison) -> Tolerance:
        """Return what is accepted of an output."""
        return tolerance_of(found.graph, self.manifest.dtype)

    def check(self) -> None:
        """Raise where something differs by more than rounding.

        Raises:
            DeviceError: a tensor does; the message names the first.
            AuditError: a text does.
        """
        if self.wrong:
            first, limit = self.wrong[0], self.limit(self.wrong[0])
            raise DeviceError(
                f"{self.bundle}: {first.graph}, output {first.output}: found a relative error of "
                f"{first.max_error:.3g} and a cosine of {first.cosine:.6f}, expected at most {limit.max_error:g} and "
                f"at least {limit.cosine:g}"
            )
        if self.faults:
            raise AuditError(
                f"{self.bundle}: found {self.faults} outputs that differ by more than rounding, expected none"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "passed": self.passed,
            "bundle": self.bundle.name,
            "model": self.manifest.model,
            "dtype": self.manifest.dtype,
            "operators": self.manifest.operators,
            "backend": self.backend,
            "sm": self.sm,
            "machine": device_info(),
            "tensors": [
                {
                    **found.figures(),
                    "limit": self.limit(found).max_error,
                    "passed": self.accepts(found),
                }
                for found in self.comparisons
            ],
            "audit": [dataclasses.asdict(row) for row in self.rows],
        }


def run_verify(
    bundle: Path,
    request: VerifyRequest,
    texts: Sequence[bytes],
    prompts: Sequence[tuple[str, bytes]],
    on_progress: OnProgress = no_progress,
    *,
    emulate: Emulate | None = None,
) -> VerifyReport:
    """Run the rounds of every method on a GPU and on the CPU, and compare every output, every cache and every text.

    Differences are part of the report; `VerifyReport.check` raises.

    Args:
        bundle: folder of the bundle.
        request: what to run.
        texts: texts of at least 700 bytes, whose beginnings are the prompts of the tensor comparison.
        prompts: identifiers and bytes; the audit uses the first of them.
        on_progress: called after every text.
        emulate: writes the twin of a bf16 bundle that runs on CPUs (`fastblt.export.emulation.emulate_bf16`); needed
            for bf16 bundles only.

    Raises:
        DeviceError: the backend runs on the CPU, or ``emulate`` is missing.
        ModuleNotFoundError: Polygraphy is not installed.
        ValueError: bundle or backend cannot be used.
    """
    require_polygraphy()  # before anything that takes time
    opened = Bundle.open(bundle, check=False)
    manifest = opened.manifest
    backend = request.backend or _backend_of(bundle)
    methods, left_out = choose_methods(request.methods, opened.config)
    capacity = max(*PROMPT_BYTES, AUDIT_PROMPT_BYTES) + request.max_new_bytes
    candidate = load_backend(backend, LoadRequest(bundle, request.provider, capacity))
    if not isinstance(candidate, DeviceBackend):
        raise DeviceError(f"backend: found {backend} on the CPU, which is the reference; expected one on a GPU")
    beginnings = [texts[i % len(texts)][:size] for i, size in enumerate(PROMPT_BYTES)]
    chosen = [(name, data[:AUDIT_PROMPT_BYTES]) for name, data in prompts[: request.prompts]]
    rounds, whole = (len(methods) * count for count in (len(beginnings), len(beginnings) + len(chosen)))
    with cpu_reference(bundle, manifest, capacity, emulate) as reference:
        comparisons = compare_rounds(
            reference,
            candidate,
            [parse_method(name) for name in methods],
            beginnings,
            request.max_new_bytes,
            part_of(on_progress, 0, whole, "tensors of"),
        )
        runtime = BltRuntime(candidate, reuse_prompts=False)
        rows = audit(
            BltRuntime(reference, reuse_prompts=False),
            [(runtime, method) for method in methods],
            chosen,
            request.max_new_bytes,
            TIE_BOUND[manifest.dtype],
            part_of(on_progress, rounds, whole, "text of"),
        )
    return VerifyReport(
        bundle, manifest, backend, candidate.device, candidate.stream.cuda.sm, comparisons, rows, left_out
    )  # fmt: skip


def _backend_of(bundle: Path) -> str:
    """Return the backend of the engines that a bundle has, else ONNX Runtime."""
    targets = [load_engine_folder(path).target for path in engine_folders(bundle)]
    return targets[0] if targets else DEFAULT_BACKEND
