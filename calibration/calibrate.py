"""Quantizes a bundle atomically: record inputs, choose precisions within the budget, measure, audit, report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fastblt.calibration.bundle_quantizer import Assignment, Quantizer, Recipe, layers_of
from fastblt.calibration.precision import RANGES, CalibrationError, Precision
from fastblt.calibration.quality import Outcomes, Quality, compare, exceeded, full_plan, measure
from fastblt.calibration.report import CalibrationResult, write_report
from fastblt.calibration.request import AUTO, CalibrationRequest
from fastblt.calibration.sensitivity import (
    WHOLE_GRAPH,
    Group,
    Sensitivity,
    assignment,
    choices,
    first_that_fits,
    groups_of,
)
from fastblt.calibration.trace_recorder import record
from fastblt.calibration.trace_store import TraceStore, model_digest
from fastblt.models.atomic_folder import replacing_folder, scratch_folder
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import write_manifest
from fastblt.runtime.bundle.target import check_bundle_target
from fastblt.runtime.measure.audit.comparison import audit
from fastblt.runtime.progress import OnProgress, no_progress

#: Parts that are quantized, where a model has them; the patcher only on request, because patches would end elsewhere.
PARTS = ("encoder", "global", "decoder", "draft")
#: Prompts and bytes after each, for the audit of drafts against autoregressive decoding.
AUDIT_PROMPTS, AUDIT_BYTES = 8, 64
#: Gap of logits that is a tie if graphs are lowered: they add up a cache's old and new rows in another order for
#: every size of call, and rounding inputs to 8 bits makes up to 1e-1 of the last bit. Other graphs have no ties.
LOWERED_TIE_BOUND = 0.5


def calibrate(
    bundle: Path,
    out: Path,
    request: CalibrationRequest,
    *,
    traces: Path | None = None,
    force: bool = False,
    on_progress: OnProgress = no_progress,
) -> CalibrationResult:
    """Quantize a bundle.

    Args:
        bundle: folder that ``fastblt export`` wrote.
        out: folder to write.
        request: scheme, budget, and texts to calibrate and to measure on.
        traces: folder to keep traces in; complete ones are used again, incomplete ones are continued. None: traces
            are recorded and deleted afterwards.
        force: replace an earlier bundle in ``out``, once the new one is complete and within the budget.
        on_progress: its steps are the texts to record and the candidates to measure; steps that turn out to be
            unnecessary are passed over.

    Returns:
        What was measured; the bundle's report contains it, too.

    Raises:
        CalibrationError: the request does not fit the bundle or cannot be met within the budget; nothing is left
            behind.
        TargetError: ``out`` exists, and is not a bundle or may not be replaced.
        BundleError: the bundle cannot be used.
    """
    opened = Bundle.open(bundle, check=False)
    _check(opened, out, request)
    check_bundle_target(out, force=force)
    opened.check_files()
    opened.check_values()
    with scratch_folder(out) as scratch, runnable(bundle, scratch) as twin:
        return _Calibration(opened, twin, request, scratch, on_progress).run(out, traces)


def _check(bundle: Bundle, out: Path, request: CalibrationRequest) -> None:
    """Raise `CalibrationError` unless this bundle can be quantized as requested."""
    quantization = bundle.manifest.quantization
    if quantization is not None:
        raise CalibrationError(f"{bundle.path}: found a bundle that is quantized already ({quantization['scheme']})")
    if out.exists() and out.samefile(bundle.path):
        raise CalibrationError(f"{out}: found the bundle itself, expected another folder")
    if request.patcher and "patcher" not in bundle.manifest.graphs:
        raise CalibrationError(f"{bundle.path}: found no patcher, expected one to quantize")


@contextmanager
def runnable(bundle: Path, scratch: Path) -> Iterator[Path]:
    """Yield a bundle that the CPU can run.

    Args:
        bundle: is yielded itself unless its type is bf16; then its fp32 twin with values rounded to bf16 is.
        scratch: folder to write the twin to, for the time of the context.
    """
    if Bundle.open(bundle, check=False).manifest.dtype != "bf16":
        yield bundle
        return
    from fastblt.export.emulation import emulate_bf16

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        emulate_bf16(bundle, Path(folder) / "twin")
        yield Path(folder) / "twin"


class _Steps:
    """Counts the steps of a calibration."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress, self._total, self._begun = on_progress, total, 0

    def begin(self, what: str) -> None:
        """Report that the steps so far are finished and that the next one begins."""
        self._on_progress(min(self._begun, self._total), self._total, what)
        self._begun += 1

    def skip(self, steps: int) -> None:
        """Pass over steps that are unnecessary."""
        self._begun += steps

    def finish(self) -> None:
        """Report that everything is done."""
        self._on_progress(self._total, self._total, "")


class _Calibration:
    """Runs one calibration, from traces to the finished bundle."""

    def __init__(
        self, bundle: Bundle, twin: Path, request: CalibrationRequest, scratch: Path, on_progress: OnProgress
    ) -> None:
        self.bundle, self.twin, self.request, self.scratch = bundle, twin, request, scratch
        self.scheme = request.parsed_scheme
        self.plan = full_plan(bundle.config, request.anchors)
        wanted = ("patcher", *PARTS) if request.patcher else PARTS
        parts = [part for part in wanted if part in bundle.manifest.graphs]
        self.groups = groups_of(list(layers_of(bundle.path, parts)), self.scheme)
        self.sets = _sets(self.groups)
        #: Tries of the bisection among mixtures, and one more measurement of the mixture that it finds.
        self.search_steps = (2 * len(self.groups) + 1).bit_length() + 1
        self.steps = _Steps(on_progress, self._count_steps())
        self.range_losses: dict[str, float] = {}

    def _count_steps(self) -> int:
        """Return the number of steps if all are necessary."""
        request = self.request
        steps = 4  # the bundle itself, uniform precision, writing, audit
        if request.needs_traces:
            steps += len(request.prompts) * len(request.recording.methods(self.bundle.config))
        steps += len(RANGES) if request.tries_ranges else 0
        steps += len(self.sets) if request.sensitivity or not request.uniform else 0
        return steps + (0 if request.uniform else self.search_steps)

    def run(self, out: Path, traces: Path | None) -> CalibrationResult:
        """Find precisions that fit the budget, and write the bundle."""
        self._prepare(traces)
        if self.request.tries_ranges:
            self._choose_ranges()
        uniform: list[Precision | None] = [self.scheme.precision] * len(self.groups)
        self.steps.begin("measuring the quantized bundle")
        chosen, found = uniform, self._try(uniform, full=True)
        fits = not exceeded(found.losses(self.quality), self.request.budget)
        if not fits and self.request.uniform:
            raise self._beyond(found)
        sensitivities: list[Sensitivity] = []
        if self.request.sensitivity or not fits:
            sensitivities = self._sensitivities()
        elif not self.request.uniform:
            self.steps.skip(len(self.sets))
        if not fits:
            chosen, found = self._search(sensitivities, found)
        elif not self.request.uniform:
            self.steps.skip(self.search_steps)
        result = self._write(out, chosen, found, sensitivities)
        self.steps.finish()
        return result

    def _prepare(self, traces: Path | None) -> None:
        """Record traces if any are needed, and measure the bundle itself."""
        self.store = self._record(traces) if self.request.needs_traces else None
        self.steps.begin("measuring the bundle itself")
        self.exact = measure(self.twin, self.request.windows, self.plan)
        self.quality = compare(self.exact, self.exact)
        ranges = self.request.ranges if self.request.ranges != AUTO else "minmax"
        recipe = Recipe(self.request.chosen_rounding, ranges)
        self.quantizer = Quantizer(self.bundle.path, self.twin, self.store, recipe)

    def _record(self, traces: Path | None) -> TraceStore:
        folder = traces if traces is not None else self.scratch / "traces"
        begun = 0

        def watch(done: int, total: int, what: str) -> None:
            nonlocal begun
            self.steps.skip(done - begun)
            begun = done
            if done < total:
                self.steps.begin(f"recording {what}")
                begun += 1

        return record(self.twin, folder, model_digest(self.bundle.manifest), self.request.recording, watch)

    def _choose_ranges(self) -> None:
        """Choose the ranges of inputs that cost the fewest bits."""
        for ranges in RANGES:
            self.steps.begin(f"trying ranges: {ranges}")
            self.quantizer.recipe = replace(self.quantizer.recipe, ranges=ranges)
            outcomes = self._outcomes(assignment([(group, self.scheme.precision) for group in self.groups]), full=False)
            self.range_losses[ranges] = outcomes.bits_per_byte / self.exact.bits_per_byte - 1.0
        best = min(self.range_losses, key=lambda name: self.range_losses[name])
        self.quantizer.recipe = replace(self.quantizer.recipe, ranges=best)

    def _try(self, choice: Sequence[Precision | None], *, full: bool) -> Quality:
        """Measure the bundle with one precision per group; None keeps the bundle's own."""
        given = assignment(list(zip(self.groups, choice, strict=True)))
        return compare(self._outcomes(given, full=full), self.exact)

    def _outcomes(self, given: Assignment, *, full: bool) -> Outcomes:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            self.quantizer.write(Path(folder), given, link=True)
            with runnable(Path(folder), self.scratch) as twin:
                return measure(twin, self.request.windows, self.plan if full else None)

    def _sensitivities(self) -> list[Sensitivity]:
        """Measure every graph and every group of layers alone."""
        found = []
        for index, (part, name, groups) in enumerate(self.sets, 1):
            self.steps.begin(f"measuring sensitivity {index} of {len(self.sets)}")
            given = assignment([(group, self.scheme.precision) for group in groups])
            outcomes = self._outcomes(given, full=part == "draft")
            loss = outcomes.bits_per_byte / self.exact.bits_per_byte - 1.0
            if part == "draft" and outcomes.masked is not None and self.exact.masked is not None:
                # The text is written by other graphs: all that changes are the bytes that are guessed.
                loss = self.exact.masked - outcomes.masked
            saved = sum(group.bytes - group.smaller for group in groups)
            found.append(Sensitivity(part, name, saved, outcomes.bits_per_byte, loss))
        return found

    def _search(self, sensitivities: Sequence[Sensitivity], uniform: Quality) -> tuple[list[Precision | None], Quality]:
        """Find the smallest mixture that fits the budget."""
        candidates = choices(self.groups, self.scheme, sensitivities)
        found: dict[int, Quality] = {0: uniform}
        full = bool(self.request.budget.keys() & {"masked", "acceptance"})
        tries = 0

        def fits(index: int) -> bool:
            nonlocal tries
            if index not in found:
                tries += 1
                self.steps.begin(f"trying mixture {index} of {len(candidates) - 2}")
                found[index] = self._try(candidates[index], full=full)
            return not exceeded(found[index].losses(self.quality), self.request.budget)

        # The last candidate is the bundle itself.
        index = first_that_fits(len(candidates) - 1, fits)
        if index is None:
            raise self._beyond(found[len(candidates) - 2])
        self.steps.skip(self.search_steps - 1 - tries)
        self.steps.begin(f"measuring mixture {index}")
        return candidates[index], found[index] if full else self._try(candidates[index], full=True)

    def _beyond(self, found: Quality) -> CalibrationError:
        """Return the error of a bundle that loses more than the budget allows."""
        lost = exceeded(found.losses(self.quality), self.request.budget)
        losses = ", ".join(f"{name} {loss:.3%}" for name, loss in lost.items())
        limits = ", ".join(f"{name} {self.request.budget[name]:.3%}" for name in lost)
        how = "uniform" if self.request.uniform else "any mixture"
        return CalibrationError(
            f"{self.bundle.path}: {self.scheme.name}, {how}: found a loss of {losses}, allowed: {limits}"
        )

    def _write(
        self, out: Path, choice: list[Precision | None], quality: Quality, sensitivities: list[Sensitivity]
    ) -> CalibrationResult:
        """Write the bundle with its report, unless the audit fails."""
        given = assignment(list(zip(self.groups, choice, strict=True)))
        source = self.bundle.manifest
        with replacing_folder(out) as new:
            self.steps.begin("writing the bundle")
            manifest = self.quantizer.write(new, given, {"scheme": self.scheme.name})
            self.steps.begin("comparing drafts with autoregressive decoding")
            self._audit(new)
            result = CalibrationResult(
                source.model,
                source.dtype,
                self.scheme,
                self.quantizer.recipe,
                dict(self.request.budget),
                source,
                manifest,
                self.quality,
                quality,
                sum(len(ids) - 1 for ids in self.request.windows),
                list(sensitivities),
                self.range_losses,
                self.store.index if self.store else None,
            )
            facts = {**(manifest.quantization or {}), "source": model_digest(source), **result.summary()}
            write_report(new, result)
            return replace(result, quantized=write_manifest(new, replace(manifest, quantization=facts)))

    def _audit(self, folder: Path) -> None:
        """Raise `CalibrationError` if verified drafts write other bytes than autoregressive decoding does."""
        methods = [method.name for method in self.plan.drafts] + ["auto"]
        with runnable(folder, self.scratch) as twin:
            prompts = [(f"prompt {i}", data) for i, data in enumerate(self.request.prompts[:AUDIT_PROMPTS])]
            longest = max(len(data) for _, data in prompts)
            runtime = BltRuntime.from_pretrained(twin, max_bytes=longest + AUDIT_BYTES, reuse_prompts=False)
            bound = LOWERED_TIE_BOUND if self.bundle.manifest.operators == "lowered" else 0.0
            rows = audit(runtime, [(runtime, method) for method in methods], prompts, AUDIT_BYTES, bound)
        wrong = [row.method for row in rows if row.faults]
        if wrong:
            raise CalibrationError(
                f"{self.bundle.path}: {self.scheme.name}: found other bytes with {', '.join(wrong)} than with ar, "
                "expected the same"
            )


def _sets(groups: Sequence[Group]) -> list[tuple[str, str, list[Group]]]:
    """Return part, name and groups of everything that is measured alone: every graph, then every group."""
    parts: dict[str, list[Group]] = {}
    for group in groups:
        parts.setdefault(group.part, []).append(group)
    found = [(part, WHOLE_GRAPH, members) for part, members in parts.items()]
    return found + [(group.part, group.name, [group]) for group in groups]
