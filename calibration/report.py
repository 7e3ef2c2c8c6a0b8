"""Reports on a quantization as JSON, Markdown and a picture; the files are part of the bundle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastblt.calibration.bundle_quantizer import Recipe
from fastblt.calibration.precision import Scheme
from fastblt.calibration.quality import Quality
from fastblt.calibration.sensitivity import WHOLE_GRAPH, Sensitivity
from fastblt.calibration.trace_store import Index
from fastblt.runtime.bundle.manifest import Manifest

JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "quantization.json", "quantization.md", "quantization.png"


@dataclass(frozen=True)
class CalibrationResult:
    """Holds the result of one quantization."""

    model: str
    dtype: str
    scheme: Scheme
    recipe: Recipe
    budget: Mapping[str, float]
    source: Manifest
    quantized: Manifest
    before: Quality
    after: Quality
    heldout_bytes: int
    sensitivities: Sequence[Sensitivity]
    range_losses: Mapping[str, float]
    """Relative growth of bits per byte for each choice of ranges; empty if they were not compared."""
    traces: Index | None

    @property
    def losses(self) -> dict[str, float]:
        """Return how much worse the bundle is, by the names of `fastblt.calibration.quality.LIMITS`."""
        return self.after.losses(self.before)

    @property
    def precisions(self) -> dict[str, dict[str, str]]:
        """Return the label of each layer's precision, by part."""
        assert self.quantized.quantization is not None
        found: dict[str, dict[str, str]] = self.quantized.quantization["graphs"]
        return found

    def summary(self) -> dict[str, Any]:
        """Return what the manifest records, in plain JSON types."""
        return {
            "rounding": self.recipe.rounding,
            "ranges": self.recipe.ranges if self.scheme.needs_activations else None,
            "budget": dict(self.budget),
            "heldout_bytes": self.heldout_bytes,
            "quality": {"before": asdict(self.before), "after": asdict(self.after), "losses": self.losses},
            "weight_bytes": {
                part: {"before": spec.weight_bytes, "after": self.quantized.graphs[part].weight_bytes}
                for part, spec in self.source.graphs.items()
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything, in plain JSON types."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "scheme": self.scheme.name,
            **self.summary(),
            "layers": self.precisions,
            "sensitivity": [asdict(row) for row in self.sensitivities],
            "range_losses": dict(self.range_losses),
            "traces": {"setting": self.traces.setting, "offered": self.traces.offered} if self.traces else None,
        }


def write_report(folder: Path, result: CalibrationResult) -> None:
    """Write the report's files; without matplotlib there is no picture, and the report says so."""
    text = json.dumps(result.to_dict(), indent=1) + "\n"
    (folder / JSON_FILE).write_text(text, encoding="utf-8")
    lines = list(_markdown(result))
    if find_spec("matplotlib") is None:
        lines += ["There is no picture: matplotlib is not installed (pip install matplotlib)."]
    else:
        _picture(folder / PICTURE_FILE, result)
    (folder / MARKDOWN_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def quality_rows(result: CalibrationResult) -> Iterator[tuple[str, str, str, str]]:
    """Yield figure, before, after and loss as text, for tables."""
    before, after, losses = result.before, result.after, result.losses
    yield (
        "bits per byte",
        f"{before.bits_per_byte:.4f}",
        f"{after.bits_per_byte:.4f}",
        f"{losses['bpb']:+.3%}",
    )
    yield "next-byte agreement", "100 %", f"{after.agreement:.2%}", f"{losses['agreement']:.2%}"
    yield "patch-boundary agreement", "100 %", f"{after.boundaries:.2%}", f"{losses['boundaries']:.2%}"
    if before.masked is not None and after.masked is not None:
        yield "masked accuracy", f"{before.masked:.2%}", f"{after.masked:.2%}", f"{losses['masked']:+.2%}"
    for method, rate in after.acceptance.items():
        lost = before.acceptance[method] - rate
        yield f"acceptance of {method}", f"{before.acceptance[method]:.2%}", f"{rate:.2%}", f"{lost:+.2%}"


def size_rows(result: CalibrationResult) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield graph, megabytes of weights before and after, ratio and layers by precision as text, for tables."""
    for part, spec in result.source.graphs.items():
        after = result.quantized.graphs[part].weight_bytes
        counts = Counter(result.precisions.get(part, {}).values())
        layers = ", ".join(f"{count} x {label}" for label, count in sorted(counts.items())) or "unchanged"
        ratio = f"{spec.weight_bytes / after:.2f}"
        yield spec.file, f"{spec.weight_bytes / 1e6:.2f}", f"{after / 1e6:.2f}", ratio, layers


def _markdown(result: CalibrationResult) -> Iterator[str]:
    budget = ", ".join(f"{name} {limit:.2%}" for name, limit in result.budget.items())
    yield f"# {result.model} ({result.dtype}) in {result.scheme.name}"
    yield ""
    yield f"Rounding: {result.recipe.rounding}. Budget: {budget}. {result.heldout_bytes} bytes of held-out text."
    yield ""
    yield from _table(("figure", "before", "after", "loss"), quality_rows(result))
    yield from _table(("graph", "MB before", "MB after", "ratio", "layers"), size_rows(result))
    if result.range_losses:
        rows = [(name, f"{loss:+.3%}") for name, loss in result.range_losses.items()]
        yield from _table(("ranges of inputs", "bits per byte"), rows)
    if result.sensitivities:
        alone = [(s.part, s.group, f"{s.saved_bytes / 1e6:.3f}", f"{s.loss:+.4%}") for s in result.sensitivities]
        yield from _table(("graph", "quantized alone", "MB saved", _loss_of_groups(result)), alone)


def _loss_of_groups(result: CalibrationResult) -> str:
    """Return what the losses of groups alone are measured in."""
    drafts = any(row.part == "draft" for row in result.sensitivities)
    return "bits per byte" + drafts * " (of the draft graph: masked accuracy)"


def _table(header: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _picture(path: Path, result: CalibrationResult) -> None:
    """Plot bits lost against bytes saved by each group alone; without sensitivities, acceptance before and after."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(7, 4.5), layout="constrained")
    axis = plot.add_subplot()
    axis.grid(alpha=0.3)
    groups = [row for row in result.sensitivities if row.group != WHOLE_GRAPH]
    title = f"{result.model} in {result.scheme.name}"
    if groups:
        for part in dict.fromkeys(row.part for row in groups):
            rows = [row for row in groups if row.part == part]
            axis.scatter([row.saved_bytes / 1e6 for row in rows], [100 * row.loss for row in rows], label=part)
        for row in groups:
            axis.annotate(row.group.split(".", 1)[-1], (row.saved_bytes / 1e6, 100 * row.loss), fontsize=6)
        axis.set(title=f"{title}: each group alone", xlabel="MB saved", xscale="log")
        axis.set_ylabel(f"{_loss_of_groups(result)} lost, %")
    else:
        names = list(result.after.acceptance)
        places = range(len(names))
        for quality, label, shift in ((result.before, "before", -0.2), (result.after, "after", 0.2)):
            axis.bar([place + shift for place in places], [quality.acceptance[n] for n in names], 0.4, label=label)
        axis.set_xticks(list(places), names, rotation=20)
        axis.set(title=f"{title}: acceptance of drafts", ylabel="accepted / drafted")
    axis.legend(fontsize="small")
    plot.savefig(path, format="png", dpi=110)
