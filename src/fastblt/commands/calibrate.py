"""``fastblt calibrate``: quantise a bundle, print what it cost and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fastblt.calibration.calibrate import CalibrationRequest, calibrate
from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.calibration.precision import CalibrationError
from fastblt.calibration.quality import parse_budget
from fastblt.calibration.report import CalibrationResult, quality_rows, size_rows
from fastblt.commands.console import table_console
from fastblt.commands.prompts import heldout_prompts
from fastblt.models.tokens import decode
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.measure.scoring.windows import Text, cut_windows

#: Bytes of the prompts that traces go on from.
PROMPT_BYTES = 64


def run(
    bundle: Path,
    out: Path,
    *,
    scheme: str,
    data: Sequence[Path],
    heldout: Sequence[Path],
    budget: str,
    block: int | None,
    rounding: str,
    ranges: str,
    samples: int,
    prompts: int,
    windows: int,
    window_bytes: int,
    seed: int,
    patcher: bool,
    uniform: bool,
    sensitivity: bool,
    traces: Path | None,
) -> None:
    """Calibrate and report.

    Raises:
        ValueError: the bundle, the text or the request cannot be used, or too much would be lost.
    """
    same = sorted({str(path) for path in data} & {str(path) for path in heldout})
    if same:
        raise CalibrationError(f"{same[0]}: found in --data and in --heldout, expected text that was not calibrated on")
    request = CalibrationRequest(
        scheme,
        tuple(_prompts(data, prompts)),
        tuple(_windows(heldout, windows, window_bytes)),
        parse_budget(budget),
        block,
        rounding,
        ranges,
        samples,
        seed=seed,
        patcher=patcher,
        uniform=uniform,
        sensitivity=sensitivity,
    )
    progress = Console(stderr=True, highlight=False)
    with progress.status("calibrating") as status:
        result = calibrate(bundle, out, request, traces=traces, on_progress=status.update)
    _print(table_console(), out, result)


def _prompts(files: Sequence[Path], count: int) -> list[bytes]:
    """Beginnings of texts: the shipped prompts, or pieces of the user's files in turn."""
    if not files:
        return heldout_prompts(count, PROMPT_BYTES)
    cuts = [cut_windows(Text(str(path), path.read_bytes()), -(-count // len(files)), PROMPT_BYTES) for path in files]
    found = [decode(cut[i]) for i in range(max(map(len, cuts))) for cut in cuts if i < len(cut)]
    return found[:count]


def _windows(files: Sequence[Path], count: int, size: int) -> list[Ids]:
    texts = [Text(str(path), path.read_bytes()) for path in files]
    texts = texts or [Text(corpus, load_text(corpus)) for corpus in CORPORA]
    return [ids for text in texts for ids in cut_windows(text, count, size)]


def _print(console: Console, out: Path, result: CalibrationResult) -> None:
    quality, size = Table(box=box.SIMPLE), Table(box=box.SIMPLE)
    for title in ("held-out text", "before", "after", "loss"):
        quality.add_column(title, justify="left" if title == "held-out text" else "right")
    for row in quality_rows(result):
        quality.add_row(*row)
    for title in ("graph", "MB before", "MB after", "ratio", "layers"):
        size.add_column(title, justify="left" if title in ("graph", "layers") else "right")
    for line in size_rows(result):
        size.add_row(*line)
    console.print(f"{out}: {result.model} in {result.scheme.name}, {result.recipe.rounding}", soft_wrap=True)
    console.print(quality)
    console.print(size)
    console.print("verified drafts write the same bytes as ar; details: quantization.md in the bundle", soft_wrap=True)
