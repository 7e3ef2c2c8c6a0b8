"""``fastblt quantize``: writes a smaller bundle and prints what that saves and costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.calibration.precision import RANGES, ROUNDINGS
from fastblt.calibration.quality import parse_budget
from fastblt.calibration.request import CalibrationRequest
from fastblt.commands.checks import check_bundle, check_bundle_target, check_output_folder
from fastblt.commands.errors import UsageError, usage_errors
from fastblt.commands.options import BundleArgument, ForceOption
from fastblt.commands.output import add_row, left, make_table, note, print_table, progress, right, stdout
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.measure.scoring.windows import Text, cut_prompts, cut_windows, read_texts

if TYPE_CHECKING:
    from fastblt.calibration.report import CalibrationResult
    from fastblt.runtime.backends.protocol import Ids

#: Bytes of the prompts that activations are recorded after.
PROMPT_BYTES = 64


def command(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write the quantized bundle to.")],
    scheme: Annotated[
        str,
        typer.Option(help="w8 or w4: weights of 8 or 4 bits; int8 or fp8: weights and the inputs of layers of 8 bits."),
    ],
    block: Annotated[
        int | None,
        typer.Option(
            help="Inputs of a layer that share a scale: 0 (all of an output channel) or 128 for w8, 32, 64 or 128 for "
            "w4  [default: w8 0, w4 32]"
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text to record the inputs of layers on; may be repeated  [default: shipped prompts]"),
    ] = None,
    heldout: Annotated[
        list[Path] | None,
        typer.Option(help="Text to measure the loss on; may be repeated  [default: shipped held-out text]"),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="Largest loss that is accepted, comma-separated NAME=PERCENT%: bpb (growth of bits per byte), "
            "agreement (of next bytes), boundaries (of patches), masked (restored bytes), acceptance (of drafts)."
        ),
    ] = "bpb=1%",
    uniform: Annotated[
        bool,
        typer.Option("--uniform", help="Fail when the budget is exceeded; otherwise some layers stay more precise."),
    ] = False,
    patcher: Annotated[
        bool, typer.Option("--patcher", help="Quantize the entropy model as well, which moves patch boundaries.")
    ] = False,
    rounding: Annotated[
        str,
        typer.Option(
            help=f"How weights are rounded: {', '.join(ROUNDINGS)} (rtn: to the nearest) or auto (gptq; fp8: rtn)."
        ),
    ] = CalibrationRequest.rounding,
    ranges: Annotated[
        str,
        typer.Option(
            "--range",
            help=f"How the range of a layer's inputs is chosen: {', '.join(RANGES)} or auto (the best of them).",
        ),
    ] = CalibrationRequest.ranges,
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="Always measure the loss of every group of layers alone, for the report."),
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Calls of each graph whose inputs are recorded.")
    ] = CalibrationRequest.samples,
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts to record after.")] = 16,
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder to keep recorded inputs in; an interrupted recording there is continued."),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Pieces of each held-out text to measure on, at most.")] = 6,
    window_bytes: Annotated[int, typer.Option(min=64, help="Bytes of a piece.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is sampled.")] = CalibrationRequest.seed,
    force: ForceOption = False,
) -> None:
    """Make a bundle smaller, and measure what that costs.

    Weights (and inputs of layers) are rounded to 8 or 4 bits. The loss is measured on held-out text; a bundle beyond
    the budget is not written. Lossless methods stay exact: they write what the quantized model writes byte by byte.
    """
    recorded = tuple(_prompts(data or [], prompts))
    measured = tuple(_windows(heldout or [], windows, window_bytes))
    with usage_errors():
        request = CalibrationRequest(
            scheme=scheme,
            prompts=recorded,
            windows=measured,
            budget=parse_budget(budget),
            block=block,
            rounding=rounding,
            ranges=ranges,
            samples=samples,
            seed=seed,
            patcher=patcher,
            uniform=uniform,
            sensitivity=sensitivity,
        )
    _check_texts(data or [], heldout or [])
    check_bundle(bundle)
    check_bundle_target(out, force=force)
    check_output_folder(traces)
    from fastblt.calibration.calibrate import calibrate

    with progress("quantizing") as on_progress:
        result = calibrate(bundle, out, request, traces=traces, force=force, on_progress=on_progress)
    _print(out, result)


def _check_texts(data: Sequence[Path], heldout: Sequence[Path]) -> None:
    same = sorted({str(path) for path in data} & {str(path) for path in heldout})
    if same:
        raise UsageError(f"{same[0]}: found in --data and in --heldout, expected text that was not calibrated on")


def _prompts(files: Sequence[Path], count: int) -> list[bytes]:
    """Return beginnings of texts: the shipped prompts, or pieces of the user's files in turn."""
    return cut_prompts(read_texts(files), count, PROMPT_BYTES) if files else heldout_prompts(count, PROMPT_BYTES)


def _windows(files: Sequence[Path], count: int, size: int) -> list[Ids]:
    """Return pieces of the user's files, or of the shipped held-out text, to measure quality on."""
    texts = read_texts(files) if files else [Text(corpus, load_text(corpus)) for corpus in CORPORA]
    return [ids for text in texts for ids in cut_windows(text, count, size)]


def _print(out: Path, result: CalibrationResult) -> None:
    from fastblt.calibration.report import quality_rows, size_rows

    quality = make_table(left("on held-out text"), right("before"), right("after"), right("loss"))
    for row in quality_rows(result):
        add_row(quality, *row)
    size = make_table(left("graph"), right("MB before"), right("MB after"), right("ratio"), left("layers"))
    for line in size_rows(result):
        add_row(size, *line)
    console = stdout()
    console.print(f"{out}: {result.model} in {result.scheme.name}, {result.recipe.rounding}", soft_wrap=True)
    for table in (quality, size):
        print_table(console, table)
    note(console, "verified drafts write the same bytes as ar; details: quantization.md in the bundle")
