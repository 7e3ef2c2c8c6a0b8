"""Bundle in, smaller bundle out, if it is good enough: traces, precisions, gate, report; all of it or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastblt.calibration.activation_ranges import RANGES
from fastblt.calibration.bundle_quantizer import ROUNDINGS, Assignment, Quantizer, Recipe, layers_of
from fastblt.calibration.precision import CalibrationError, Precision, Scheme, parse_scheme
from fastblt.calibration.quality import Outcomes, Quality, compare, exceeded, full_plan, measure
from fastblt.calibration.report import CalibrationResult, write_report
from fastblt.calibration.sensitivity import (
    WHOLE_GRAPH,
    Group,
    Sensitivity,
    assignment,
    choices,
    first_that_fits,
    groups_of,
)
from fastblt.calibration.trace_recorder import RecordingSetting, record
from fastblt.calibration.trace_store import TraceStore, model_digest
from fastblt.models.atomic_folder import replacing_folder
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import (
    Manifest,
    is_bundle,
    write_manifest,
)
from fastblt.runtime.measure.audit.comparison import audit

AUTO = "auto"
#: Parts that are quantised; the patcher only if asked for, because patches would end elsewhere.
PARTS = ("encoder", "global", "decoder")
#: Prompts and bytes after each, for the audit of drafts against autoregressive decoding.
AUDIT_PROMPTS, AUDIT_BYTES = 8, 64
#: Gap of logits that is a tie where graphs are lowered: they add up a cache's old and new rows in another order for
#: every size of call, and rounding inputs to 8 bits makes up to 1e-1 of the last bit. Other graphs have no ties.
LOWERED_TIE_BOUND = 0.5


@dataclass(frozen=True)
class CalibrationRequest:
    """What is asked for."""

    scheme: str
    prompts: tuple[bytes, ...]
    """Text that traces go on from."""
    windows: tuple[Ids, ...]
    """Held-out text that quality is measured on; int64 [1 + bytes] each, beginning with BOS."""
    budget: Mapping[str, float] = field(default_factory=lambda: {"bpb": 0.01})
    """Most that may be lost, see `fastblt.calibration.quality.parse_budget`."""
    block: int | None = None
    rounding: str = AUTO
    ranges: str = AUTO
    samples: int = 256
    new_bytes: int = 64
    seed: int = 0
    anchors: int = 8
    patcher: bool = False
    """Quantise the patcher, too."""
    uniform: bool = False
    """Fail instead of keeping some layers in higher precision."""
    sensitivity: bool = False
    """Measure every group alone even where the budget does not need it."""


def calibrate(
    bundle: Path,
    out: Path,
    request: CalibrationRequest,
    *,
    traces: Path | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> CalibrationResult:
    """Quantise a bundle.

    Args:
        bundle: of ``fastblt export``.
        out: folder to write; an earlier bundle there is replaced when the new one is complete and good enough.
        request: what is asked for.
        traces: folder of traces, gone on with if they are incomplete; None: they are recorded and thrown away.
        on_progress: told what is being done.

    Returns:
        What was measured; it is in the bundle's report, too.

    Raises:
        CalibrationError: the request cannot be met, or not within the budget; nothing is left behind.
        BundleError: the bundle cannot be used.
    """
    scheme = parse_scheme(request.scheme, request.block)
    opened = Bundle.open(bundle, check=False)
    manifest = opened.manifest
    _check(bundle, manifest, out, request)
    opened.check_files()
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name,
        runnable(bundle, Path(name)) as twin,
    ):
        scratch = Path(name)
        store = None
        if _needs_traces(scheme, request):
            folder = traces if traces is not None else scratch / "traces"
            setting = RecordingSetting(request.prompts, request.samples, request.new_bytes, request.seed)
            store = record(twin, folder, model_digest(manifest), setting, _progress(on_progress))
        return _Calibration(bundle, twin, manifest, scheme, request, store, scratch, on_progress).run(out)


def _check(bundle: Path, manifest: Manifest, out: Path, request: CalibrationRequest) -> None:
    if manifest.quantization is not None:
        raise CalibrationError(f"{bundle}: found a bundle that is quantised ({manifest.quantization['scheme']})")
    if out.exists() and not is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise CalibrationError(f"{out}: exists and is not a bundle, expected a new name or a bundle to replace")
    if out.exists() and out.samefile(bundle):
        raise CalibrationError(f"{out}: found the bundle itself, expected another folder")
    if request.patcher and "patcher" not in manifest.graphs:
        raise CalibrationError(f"{bundle}: found no patcher, expected one to quantise")
    if not request.windows:
        raise CalibrationError("held-out text: found none, expected at least one window")
    for option, value, known in (("rounding", request.rounding, ROUNDINGS), ("range", request.ranges, RANGES)):
        if value not in (AUTO, *known):
            raise CalibrationError(f"--{option}: found {value!r}, expected {AUTO}, {', '.join(known)}")


def _rounding(scheme: Scheme, request: CalibrationRequest) -> str:
    """GPTQ lost least with every type of integers (docs/quantization.md); E4M3 is no grid that it knows."""
    if request.rounding != AUTO:
        return request.rounding
    return "rtn" if scheme.name == "fp8" else "gptq"


def _needs_traces(scheme: Scheme, request: CalibrationRequest) -> bool:
    return scheme.needs_activations or _rounding(scheme, request) == "gptq"


def _progress(on_progress: Callable[[str], None]) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(f"recording traces: {done} of {total}")


@contextmanager
def runnable(bundle: Path, scratch: Path) -> Iterator[Path]:
    """The bundle as the CPU can run it: itself, or the fp32 twin of a bf16 one whose values are rounded to bf16."""
    if Bundle.open(bundle, check=False).manifest.dtype != "bf16":
        yield bundle
        return
    from fastblt.export.emulation import emulate_bf16

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        emulate_bf16(bundle, Path(folder) / "twin")
        yield Path(folder) / "twin"


class _Calibration:
    """One calibration, from traces to the finished bundle."""

    def __init__(
        self,
        bundle: Path,
        twin: Path,
        manifest: Manifest,
        scheme: Scheme,
        request: CalibrationRequest,
        store: TraceStore | None,
        scratch: Path,
        on_progress: Callable[[str], None],
    ) -> None:
        self.bundle, self.manifest, self.scheme, self.request = bundle, manifest, scheme, request
        self.twin, self.store, self.scratch, self.on_progress = twin, store, scratch, on_progress
        self.plan = full_plan(Bundle.open(bundle, check=False).config, request.anchors)
        parts = [part for part in (("patcher", *PARTS) if request.patcher else PARTS) if part in manifest.graphs]
        self.groups = groups_of(list(layers_of(bundle, parts)), scheme)
        on_progress("measuring the bundle itself")
        self.exact = measure(twin, request.windows, self.plan)
        self.quality = compare(self.exact, self.exact)
        self.quantizer = self._quantizer(request.ranges if request.ranges != AUTO else "minmax")
        self.range_losses: dict[str, float] = {}

    def _quantizer(self, ranges: str) -> Quantizer:
        return Quantizer(self.bundle, self.twin, self.store, Recipe(_rounding(self.scheme, self.request), ranges))

    def run(self, out: Path) -> CalibrationResult:
        """Find precisions that fit the budget, and write the bundle."""
        if self.scheme.needs_activations and self.request.ranges == AUTO and self.scheme.name != "fp8":
            self._choose_ranges()
        uniform: list[Precision | None] = [self.scheme.precision] * len(self.groups)
        self.on_progress("measuring the quantised bundle")
        chosen, found = uniform, self._try(uniform, full=True)
        fits = not exceeded(found.losses(self.quality), self.request.budget)
        sensitivities = self._sensitivities() if self.request.sensitivity or not (fits or self.request.uniform) else []
        if not fits:
            if self.request.uniform:
                raise self._beyond(found)
            chosen, found = self._search(sensitivities, found)
        return self._write(out, chosen, found, sensitivities)

    def _choose_ranges(self) -> None:
        """The way of choosing ranges that costs the fewest bits."""
        for ranges in RANGES:
            self.on_progress(f"trying ranges: {ranges}")
            self.quantizer.recipe = replace(self.quantizer.recipe, ranges=ranges)
            outcomes = self._outcomes(assignment([(group, self.scheme.precision) for group in self.groups]), full=False)
            self.range_losses[ranges] = outcomes.bits_per_byte / self.exact.bits_per_byte - 1.0
        best = min(self.range_losses, key=lambda name: self.range_losses[name])
        self.quantizer.recipe = replace(self.quantizer.recipe, ranges=best)

    def _try(self, choice: Sequence[Precision | None], *, full: bool) -> Quality:
        given = assignment(list(zip(self.groups, choice, strict=True)))
        return compare(self._outcomes(given, full=full), self.exact)

    def _outcomes(self, given: Assignment, *, full: bool) -> Outcomes:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            self.quantizer.write(Path(folder), given, link=True)
            with runnable(Path(folder), self.scratch) as twin:
                return measure(twin, self.request.windows, self.plan if full else None)

    def _sensitivities(self) -> list[Sensitivity]:
        """Of every group, and of every graph as a whole."""
        found = []
        parts: dict[str, list[Group]] = {}
        for group in self.groups:
            parts.setdefault(group.part, []).append(group)
        sets = [(part, WHOLE_GRAPH, groups) for part, groups in parts.items()]
        sets += [(group.part, group.name, [group]) for group in self.groups]
        for index, (part, name, groups) in enumerate(sets, 1):
            self.on_progress(f"measuring sensitivity: {index} of {len(sets)}")
            given = assignment([(group, self.scheme.precision) for group in groups])
            bits = self._outcomes(given, full=False).bits_per_byte
            saved = sum(group.bytes - group.smaller for group in groups)
            found.append(Sensitivity(part, name, saved, bits, bits / self.exact.bits_per_byte - 1.0))
        return found

    def _search(self, sensitivities: Sequence[Sensitivity], uniform: Quality) -> tuple[list[Precision | None], Quality]:
        """The first of the mixtures that fits."""
        candidates = choices(self.groups, self.scheme, sensitivities)
        found: dict[int, Quality] = {0: uniform}
        full = bool(self.request.budget.keys() & {"masked", "acceptance"})

        def fits(index: int) -> bool:
            if index not in found:
                self.on_progress(f"trying mixture {index} of {len(candidates) - 2}")
                found[index] = self._try(candidates[index], full=full)
            return not exceeded(found[index].losses(self.quality), self.request.budget)

        # The last one is the bundle itself.
        index = first_that_fits(len(candidates) - 1, fits)
        if index is None:
            raise self._beyond(found[len(candidates) - 2])
        return candidates[index], found[index] if full else self._try(candidates[index], full=True)

    def _beyond(self, found: Quality) -> CalibrationError:
        lost = exceeded(found.losses(self.quality), self.request.budget)
        told = ", ".join(f"{name} {loss:.3%}" for name, loss in lost.items())
        limits = ", ".join(f"{name} {self.request.budget[name]:.3%}" for name in lost)
        how = "uniform" if self.request.uniform else "any mixture"
        return CalibrationError(f"{self.bundle}: {self.scheme.name}, {how}: found a loss of {told}, allowed: {limits}")

    def _write(
        self, out: Path, choice: list[Precision | None], quality: Quality, sensitivities: list[Sensitivity]
    ) -> CalibrationResult:
        given = assignment(list(zip(self.groups, choice, strict=True)))
        with replacing_folder(out) as new:
            self.on_progress("writing the bundle")
            manifest = self.quantizer.write(new, given, {"scheme": self.scheme.name})
            self.on_progress("comparing drafts with autoregressive decoding")
            self._audit(new)
            result = CalibrationResult(
                self.manifest.model,
                self.manifest.dtype,
                self.scheme,
                self.quantizer.recipe,
                dict(self.request.budget),
                self.manifest,
                manifest,
                self.quality,
                quality,
                sum(len(ids) - 1 for ids in self.request.windows),
                list(sensitivities),
                self.range_losses,
                self.store.index if self.store else None,
            )
            facts = {**(manifest.quantization or {}), "source": model_digest(self.manifest), **result.summary()}
            write_report(new, result)
            result = replace(result, quantized=write_manifest(new, replace(manifest, quantization=facts)))
        return result

    def _audit(self, folder: Path) -> None:
        """Raise where verified drafts write other bytes than autoregressive decoding does."""
        methods = [method.name for method in self.plan.drafts] + ["auto"]
        with runnable(folder, self.scratch) as twin:
            prompts = [(f"prompt {i}", data) for i, data in enumerate(self.request.prompts[:AUDIT_PROMPTS])]
            longest = max(len(data) for _, data in prompts)
            runtime = BltRuntime.from_pretrained(twin, max_bytes=longest + AUDIT_BYTES)
            bound = LOWERED_TIE_BOUND if self.manifest.operators == "lowered" else 0.0
            rows = audit(runtime, [(runtime, method) for method in methods], prompts, AUDIT_BYTES, bound)
        wrong = [row.method for row in rows if row.faults]
        if wrong:
            told = f"found other bytes with {', '.join(wrong)} than with ar, expected the same"
            raise CalibrationError(f"{self.bundle}: {self.scheme.name}: {told}")
