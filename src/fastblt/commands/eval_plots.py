"""The plots of ``fastblt eval``: acceptance, masked accuracy, diversity against cost (arXiv 2605.08044, Figure 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastblt.models.atomic_file import replacing_file
from fastblt.runtime.measure.scoring.figures import DiversityRow, DraftRow, Figures
from fastblt.runtime.measure.scoring.windows import OVERALL
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.block_argument import BlockArgument, BlockMethod
from fastblt.runtime.methods.self_speculation import SelfSpeculation

ACCEPTANCE_FILE = "acceptance.png"
MASKED_FILE = "masked_accuracy.png"
DIVERSITY_FILE = "diversity.png"


def write_plots(folder: Path, figures: Figures, model: str) -> list[Path]:
    """Write a PNG file for each kind of figure that there is, each atomically.

    Args:
        folder: must exist.
        figures: figures of one backend.
        model: name of the model, for the titles.

    Returns:
        The files.
    """
    plots = {
        ACCEPTANCE_FILE: _acceptance(figures, model) if figures.drafts else None,
        MASKED_FILE: _masked(figures, model) if figures.masked else None,
        DIVERSITY_FILE: _diversity(figures, model) if figures.diversity else None,
    }
    return [_save(folder / name, plot) for name, plot in plots.items() if plot is not None]


def _save(path: Path, plot: Figure) -> Path:
    with replacing_file(path) as file:
        plot.savefig(file, format="png", dpi=120)
    return path


def _panel(axis: Axes, title: str, x: str, y: str, legend: str | None = None) -> None:
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", title=legend)


def _acceptance(figures: Figures, model: str) -> Figure:
    drafts = [(row, parse_method(row.method)) for row in figures.drafts]
    speculation = [(row, method.k) for row, method in drafts if isinstance(method, SelfSpeculation)]
    blocks = [
        (row, method.argument) for row, method in drafts if isinstance(method, BlockMethod) and row.data == OVERALL
    ]
    panels: list[Callable[[Axes], None]] = []
    if speculation:
        panels.append(lambda axis: _self_speculation(axis, speculation))
    if blocks:
        panels.append(lambda axis: _block_drafts(axis, blocks))
    plot = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    plot.suptitle(f"{model}: teacher-forced acceptance of drafts after true text")
    for index, draw in enumerate(panels, 1):
        axis = plot.add_subplot(1, len(panels), index)
        draw(axis)
        axis.set_ylim(0, 1)
    return plot


def _self_speculation(axis: Axes, rows: Sequence[tuple[DraftRow, int]]) -> None:
    for name in dict.fromkeys(row.data for row, _ in rows):
        points = sorted((k, row.acceptance) for row, k in rows if row.data == name)
        axis.plot(*zip(*points, strict=True), marker="o", label=name, **_weight(name))
    axis.set_xticks(sorted({k for _, k in rows}))
    _panel(axis, "BLT-S", "draft length k, bytes", "accepted part of the drafted bytes")


def _block_drafts(axis: Axes, rows: Sequence[tuple[DraftRow, BlockArgument]]) -> None:
    rules = [argument.name.partition("@")[2] for _, argument in rows]
    for rule in dict.fromkeys(rules):
        points = sorted(
            (argument.size, row.acceptance) for own, (row, argument) in zip(rules, rows, strict=True) if own == rule
        )
        axis.plot(*zip(*points, strict=True), marker="o", label=rule)
    axis.set_xticks(sorted({argument.size for _, argument in rows}))
    _panel(axis, "BLT-DV, all texts", "block size B, bytes", "accepted part of the drafted bytes", "unmasking rule")


def _weight(name: str) -> dict[str, Any]:
    """Return line options that make all texts together stand out."""
    return {"linewidth": 2.5, "zorder": 3} if name == OVERALL else {"linewidth": 1.0, "alpha": 0.8}


def _masked(figures: Figures, model: str) -> Figure:
    plot = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = plot.add_subplot()
    for latent, style in (("closed", "-"), ("partial", "--")):
        for name in dict.fromkeys(row.data for row in figures.masked):
            points = [(row.t, row.accuracy) for row in figures.masked if (row.data, row.latent) == (name, latent)]
            if name == OVERALL or latent == "closed":
                known = [(t, accuracy) for t, accuracy in points if accuracy is not None]
                axis.plot(
                    *zip(*known, strict=True),
                    linestyle=style,
                    marker="o",
                    markersize=3,
                    label=f"{name}, {latent} latent",
                    **_weight(name),
                )
    axis.set_ylim(0, 1)
    _panel(
        axis,
        f"{model}: masked accuracy, one decoder call",
        "part of the block that is hidden, t",
        "hidden bytes restored",
    )
    return plot


def _diversity(figures: Figures, model: str) -> Figure:
    plot = Figure(figsize=(6.5, 4.6), layout="constrained")
    axis = plot.add_subplot()
    for index, top_p in enumerate(dict.fromkeys(row.top_p for row in figures.diversity)):
        color = f"C{index}"
        known = [row for row in figures.diversity if row.top_p == top_p and row.type_token_ratio is not None]
        blocks = [row for row in known if row.gamma is not None]
        if blocks:
            axis.plot(*_points(blocks), marker="o", color=color, label=f"BLT-D, top-p {top_p:g}")
        for row in blocks:
            at = (row.decoder_nfe_per_byte or 0.0, row.type_token_ratio or 0.0)
            axis.annotate(f"γ={row.gamma:g}", at, textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.plot(
            *_points([row for row in known if row.gamma is None]),
            marker="*", markersize=11, linestyle="none", color=color, label=f"autoregressive, top-p {top_p:g}",
        )  # fmt: skip
    _panel(axis, f"{model}: diversity against cost", "decoder calls per byte", "type-token ratio (words)")
    return plot


def _points(rows: Sequence[DiversityRow]) -> tuple[list[float], list[float]]:
    return [row.decoder_nfe_per_byte or 0.0 for row in rows], [row.type_token_ratio or 0.0 for row in rows]
