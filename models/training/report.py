"""Reports on a finished run: quality on every held-out corpus, and a picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastblt.models.atomic_file import replacing_file
from fastblt.models.blt import Blt
from fastblt.models.limits import FILE_BYTES
from fastblt.models.reading import read_text
from fastblt.models.training.corpus import Corpus, Split
from fastblt.models.training.evaluation import evaluate

REPORT_FILE = "report.json"
CURVES_FILE = "curves.png"
#: Title, unit, and the figures of an evaluation with their labels.
_PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("held-out text", "bits per byte", {"bits_per_byte": "windows of 512 bytes"}),
    (
        "teacher-forced draft acceptance",
        "accepted part of the draft",
        {"acceptance_s4": "BLT-S, k = 4", "acceptance_s8": "BLT-S, k = 8", "acceptance_dv": "BLT-DV, one step"},
    ),
    ("masked bytes, one step", "right bytes", {"masked_accuracy_t50": "t = 0.5", "masked_accuracy_t100": "t = 1"}),
)


def of_corpus(split: Split, corpus: int) -> Split:
    """Return the documents of one corpus."""
    mine = split.corpus_ids == corpus
    return Split(split.text, split.offsets[mine], split.lengths[mine], split.corpus_ids[mine], split.names[mine])


def heldout_report(model: Blt, corpus: Corpus, *, windows: int = 96, length: int = 1024) -> dict[str, Any]:
    """Measure the held-out quality of a model, over everything and by corpus.

    Args:
        model: in fp32.
        corpus: its held-out split is read.
        windows: number of random windows per figure.
        length: bytes of a window; each begins without context.
    """
    everything = evaluate(model, corpus.heldout, windows=windows, length=length)
    by_corpus = {
        name: evaluate(model, of_corpus(corpus.heldout, index), windows=windows // 2, length=length)
        for index, name in enumerate(corpus.names)
    }
    return {"windows": windows, "window_bytes": length, "heldout": everything, "by_corpus": by_corpus}


def plot_curves(log: Path, picture: Path) -> None:
    """Plot the evaluations of a ``log.jsonl`` over the bytes seen.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in read_text(log, FILE_BYTES).splitlines()]
    records = [r for r in records if "bits_per_byte" in r]
    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(13, 3.6), constrained_layout=True)
    for axis, (title, unit, series) in zip(axes, _PANELS, strict=True):
        for name, label in series.items():
            points = [(r["tokens"] / 1e6, r[name]) for r in records if name in r]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set(title=title, xlabel="training text seen, MB", ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing_file(picture) as file:
        figure.savefig(file, format=picture.suffix.removeprefix(".") or "png", dpi=110)
    pyplot.close(figure)
